// The loops, once for every level: exact integer sums, then floats in one fixed order, so that a token's bits depend
// neither on the tokens beside it nor on threads nor on the instruction set. No fused multiply-add anywhere.

// sum of scale * (q - BIAS) * y, over 256. Each level states before this file:
// group_sums<BIAS>(q, a, to): the 16 sums of (q - BIAS) * y of 16 each.
template <int BIAS>
inline int32_t scaled_sum(const Codes& c, const Activation& a) {
#if defined(__AVX512VNNI__)
  const __m512i groups = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  __m512i scale = _mm512_load_si512(c.scale), zero = _mm512_setzero_si512();
  __m512i total = _mm512_mullo_epi32(_mm512_mullo_epi32(scale, _mm512_load_si512(a.sum)), _mm512_set1_epi32(-BIAS));
  for (int k = 0; k < 4; k++) {
    __m512i dot = _mm512_dpbusd_epi32(zero, _mm512_load_si512(c.q + 64 * k), _mm512_load_si512(a.q + 64 * k));
    __m512i spread = _mm512_permutexvar_epi32(_mm512_add_epi32(groups, _mm512_set1_epi32(4 * k)), scale);
    total = _mm512_add_epi32(total, _mm512_mullo_epi32(dot, spread));
  }
  return _mm512_reduce_add_epi32(total);
#else
  alignas(64) int32_t dot[16];
  group_sums<BIAS>(c.q, a, dot);
  int32_t total = 0;
  for (int g = 0; g < 16; g++) total += c.scale[g] * dot[g];
  return total;
#endif
}

template <class F>
inline float wide_value(const Codes& c, const Activation& a) {
  float value = c.d[0] * float(scaled_sum<F::bias>(c, a));
  if (F::lows) {
    int32_t low = 0;
    for (int g = 0; g < 16; g++) low += c.low[g] * a.sum[g];
    value = value - c.m[0] * float(low);
  }
  return a.d[0] * value;
}

template <class F>
inline float narrow_value(const Codes& c, const Activation& a) {
#if defined(__AVX512VNNI__)
  __m256i dot[8], zero = _mm256_setzero_si256();
  for (int j = 0; j < 8; j++)
    dot[j] = _mm256_dpbusd_epi32(zero, _mm256_load_si256((const __m256i*)c.q + j), _mm256_load_si256((const __m256i*)a.q + j));
  __m512i sums = _mm512_load_si512(a.sum);
  __m256i sum = _mm512_cvtepi64_epi32(_mm512_add_epi32(sums, _mm512_srli_epi64(sums, 32)));
  __m256i exact = _mm256_sub_epi32(sums_of_8(dot), _mm256_mullo_epi32(sum, _mm256_set1_epi32(F::bias)));
  __m256 v8 = _mm256_mul_ps(_mm256_load_ps(c.d), _mm256_cvtepi32_ps(exact));
  if (F::lows) v8 = _mm256_add_ps(v8, _mm256_mul_ps(_mm256_load_ps(c.m), _mm256_cvtepi32_ps(sum)));
  v8 = _mm256_mul_ps(v8, _mm256_load_ps(a.d));
  __m128 v4 = _mm_add_ps(_mm256_castps256_ps128(v8), _mm256_extractf128_ps(v8, 1));
  v4 = _mm_add_ps(v4, _mm_movehl_ps(v4, v4));
  return _mm_cvtss_f32(_mm_add_ss(v4, _mm_movehdup_ps(v4)));
#else
  alignas(64) int32_t dot[16];
  group_sums<F::bias>(c.q, a, dot);
  float v[8];
  for (int j = 0; j < 8; j++) {
    v[j] = c.d[j] * float(dot[2 * j] + dot[2 * j + 1]);
    if (F::lows) v[j] = v[j] + c.m[j] * float(a.sum[2 * j] + a.sum[2 * j + 1]);
    v[j] = v[j] * a.d[j];
  }
  return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
#endif
}

template <class F>
inline float value(const Codes& c, const Activation& a) {
  if constexpr (F::wide) return wide_value<F>(c, a);
  else return narrow_value<F>(c, a);
}

// The `n`th 256 elements of a row; a row of a narrow type may end inside, and the rest weighs nothing.
template <class F>
inline void unpack(const uint8_t* row, int n, int cols, Codes& c) {
  if constexpr (F::wide) {
    F::unpack(row + size_t(n) * F::bytes, c);
  } else {
    int blocks = (cols - 256 * n) / 32;
    for (int j = 0; j < 8; j++) {
      if (j < blocks) F::unpack(row + (size_t(n) * 8 + j) * F::bytes, c.q + 32 * j, c.d[j], c.m[j]);
      else c.d[j] = c.m[j] = 0.0f;
    }
  }
}

constexpr int tokens_at_once = 128;

// Computes what a level can by tiles, for tokens [from, from + tokens); returns the first row left to do.
template <class F>
int tiled_rows(const Job& job, int from, int tokens);

template <class F>
void quantized_rows(const Job& job) {
  const int chunks = (job.cols + 255) / 256;
  Codes c = {};
  for (int from = 0; from < job.tokens; from += tokens_at_once) {
    int tokens = job.tokens - from < tokens_at_once ? job.tokens - from : tokens_at_once;
    for (int r = tiled_rows<F>(job, from, tokens); r < job.end; r++) {
      const uint8_t* row = job.weights + size_t(r) * job.row_bytes;
      float sum[tokens_at_once];
      for (int t = 0; t < tokens; t++) sum[t] = 0.0f;
      for (int n = 0; n < chunks; n++) {
        unpack<F>(row, n, job.cols, c);
        for (int t = 0; t < tokens; t++) {
          const Activation* a = static_cast<const Activation*>(job.x[from + t]) + n;
          sum[t] = sum[t] + value<F>(c, *a);
        }
      }
      for (int t = 0; t < tokens; t++) job.out[from + t][r] = sum[t];
    }
  }
}

// Plain numbers: 16 running sums, added as a tree.
typedef float Sixteen __attribute__((vector_size(64)));

inline Sixteen sixteen(const float* p) {
  Sixteen value;
  __builtin_memcpy(&value, p, sizeof value);
  return value;
}

struct F32 {
  static constexpr int bytes = 4;
  static float at(const uint8_t* p) { return load<float>(p); }
};
struct F16 {
  static constexpr int bytes = 2;
  static float at(const uint8_t* p) { return half(p); }
};
struct BF16 {
  static constexpr int bytes = 2;
  static float at(const uint8_t* p) { return as_float(uint32_t(load<uint16_t>(p)) << 16); }
};

template <class F>
inline void widen(const uint8_t* row, int n, float* to) {
  int i = 0;
#if defined(__AVX512F__)
  if (F::bytes == 2)
    for (; i + 16 <= n; i += 16) {
      __m256i bits = _mm256_loadu_si256((const __m256i*)(row + 2 * i));
      __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16);
      _mm512_store_ps(to + i, __is_same(F, F16) ? _mm512_cvtph_ps(bits) : _mm512_castsi512_ps(high));
    }
#elif defined(__F16C__)
  if (__is_same(F, F16))
    for (; i + 8 <= n; i += 8) _mm256_store_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(row + 2 * i))));
#endif
  for (; i < n; i++) to[i] = F::at(row + size_t(i) * F::bytes);
}

inline float tree(const Sixteen& lanes) {
  float v[16];
  __builtin_memcpy(v, &lanes, sizeof v);
  for (int width = 8; width; width /= 2)
    for (int i = 0; i < width; i++) v[i] = v[i] + v[i + width];
  return v[0];
}

// `n` is a multiple of 16; sums go on from where they are.
template <int T>
inline void add_products(const float* w, const float* const* x, int from, int n, Sixteen* sum) {
  Sixteen s[T];
  for (int t = 0; t < T; t++) s[t] = sum[t];
  for (int i = 0; i < n; i += 16)
    for (int t = 0; t < T; t++) s[t] = s[t] + sixteen(w + i) * sixteen(x[t] + from + i);
  for (int t = 0; t < T; t++) sum[t] = s[t];
}

// The rounded rows of activations are padded with zeros to whole sixteens.
template <class F>
void plain_rows(const Job& job) {
  constexpr int chunk = 512;
  alignas(64) float w[chunk];
  Sixteen sum[tokens_at_once];
  for (int from = 0; from < job.tokens; from += tokens_at_once) {
    int tokens = job.tokens - from < tokens_at_once ? job.tokens - from : tokens_at_once;
    const float* const* x = reinterpret_cast<const float* const*>(job.x) + from;
    for (int r = job.begin; r < job.end; r++) {
      const uint8_t* row = job.weights + size_t(r) * job.row_bytes;
      for (int t = 0; t < tokens; t++) sum[t] = Sixteen{};
      for (int i = 0; i < job.cols; i += chunk) {
        int n = job.cols - i < chunk ? job.cols - i : chunk, padded = (n + 15) / 16 * 16;
        widen<F>(row + size_t(i) * F::bytes, n, w);
        for (int k = n; k < padded; k++) w[k] = 0.0f;
        int t = 0;
        for (; t + 4 <= tokens; t += 4) add_products<4>(w, x + t, i, padded, sum + t);
        for (; t < tokens; t++) add_products<1>(w, x + t, i, padded, sum + t);
      }
      for (int t = 0; t < tokens; t++) job.out[from + t][r] = tree(sum[t]);
    }
  }
}

inline uint32_t bits_of(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits;
}

inline float round_bf16(float x) {
  uint32_t bits = bits_of(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return x;
  return as_float((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u);
}

inline float round_f16(float x) {
  uint32_t bits = bits_of(x), sign = bits & 0x80000000u, size = bits & 0x7fffffff;
  if (size > 0x7f800000) return x;
  if (size < 0x38800000) {  // below the smallest normal: steps of 2^-24
    float magic = 0x1.8p-1f;  // its last bit is 2^-24
    return as_float(sign | bits_of((as_float(size) + magic) - magic));
  }
  size = (size + 0xfff + ((size >> 13) & 1)) & ~0x1fffu;
  return as_float(sign | (size > 0x477fe000 ? 0x7f800000 : size));
}

template <int N>
inline float round_block(const float* x, int8_t* q) {
  uint32_t most = 0;
  for (int i = 0; i < N; i++) {
    uint32_t size = bits_of(x[i]) & 0x7fffffff;  // ordered as the floats are
    most = size > most ? size : most;
  }
  float d = as_float(most) / 127.0f;
  if (most >= 0x7f800000 || d == 0.0f) {
    for (int i = 0; i < N; i++) q[i] = 0;
    return d == 0.0f ? d : __builtin_nanf("");
  }
  const float magic = 12582912.0f;  // 1.5 * 2^23: the sum is rounded to an integer, halves to even
  for (int i = 0; i < N; i++) {
    int code = int((x[i] / d + magic) - magic);
    code = code > 127 ? 127 : code;
    q[i] = int8_t(code < -127 ? -127 : code);
  }
  return d;
}

void round_row(const float* x, int n, Rounding kind, void* to) {
  if (kind == Rounding::none || kind == Rounding::f16 || kind == Rounding::bf16) {
    float* y = static_cast<float*>(to);
    for (int i = 0; i < n; i++)
      y[i] = kind == Rounding::f16 ? round_f16(x[i]) : kind == Rounding::bf16 ? round_bf16(x[i]) : x[i];
    for (int i = n; i % 16; i++) y[i] = 0.0f;
    return;
  }
  Activation* a = static_cast<Activation*>(to);
  for (int from = 0; from < n; from += 256, a++) {
    __builtin_memset(a, 0, sizeof *a);
    if (kind == Rounding::wide) {
      a->d[0] = round_block<256>(x + from, a->q);
    } else {
      for (int j = 0; j < 8 && from + 32 * j < n; j++) a->d[j] = round_block<32>(x + from + 32 * j, a->q + 32 * j);
    }
    for (int g = 0; g < 16; g++)
      for (int i = 0; i < 16; i++) a->sum[g] += a->q[16 * g + i];
  }
}

template <class F>
constexpr Format quantized(const char* name) {
  return {name, F::block, F::bytes, F::wide ? Rounding::wide : Rounding::narrow, quantized_rows<F>};
}

const Format formats[] = {
    {"F32", 1, 4, Rounding::none, plain_rows<F32>},
    {"F16", 1, 2, Rounding::f16, plain_rows<F16>},
    {"BF16", 1, 2, Rounding::bf16, plain_rows<BF16>},
    quantized<Q4_0>("Q4_0"),
    quantized<Q4_1>("Q4_1"),
    quantized<Q5_0>("Q5_0"),
    quantized<Q5_1>("Q5_1"),
    quantized<Q8_0>("Q8_0"),
    quantized<Q2_K>("Q2_K"),
    quantized<Q3_K>("Q3_K"),
    quantized<Q4_K>("Q4_K"),
    quantized<Q5_K>("Q5_K"),
    quantized<Q6_K>("Q6_K"),
    quantized<IQ4_NL>("IQ4_NL"),
    quantized<IQ4_XS>("IQ4_XS"),
    quantized<MXFP4>("MXFP4"),
    quantized<TQ1_0>("TQ1_0"),
    quantized<TQ2_0>("TQ2_0"),
    quantized<IQ1_S>("IQ1_S"),
    quantized<IQ1_M>("IQ1_M"),
    quantized<IQ2_XXS>("IQ2_XXS"),
    quantized<IQ2_XS>("IQ2_XS"),
    quantized<IQ2_S>("IQ2_S"),
    quantized<IQ3_XXS>("IQ3_XXS"),
    quantized<IQ3_S>("IQ3_S"),
};

// Plain numbers: 16 running sums of fused multiply-adds, added as a tree. A level states `Sixteen` and, on it, `zeros`,
// `sixteen(p)` and `fused(a, b, c)` = a * b + c before this file.

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
inline Sixteen numbers(const uint8_t* p) {  // sixteen
#if defined(AVX512_LEVEL)
  if (F::bytes == 2) {
    const __m256i bits = _mm256_loadu_si256((const __m256i*)p);
    if (__is_same(F, F16)) return {_mm512_cvtph_ps(bits)};
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
  }
#elif defined(AVX256_LEVEL)
  if (F::bytes == 2) {
    const __m128i low = _mm_loadu_si128((const __m128i*)p), high = _mm_loadu_si128((const __m128i*)p + 1);
    if (__is_same(F, F16)) return {_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)};
    auto up = [](__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); };
    return {up(low), up(high)};
  }
#elif defined(NEON_LEVEL)
  if (F::bytes == 2) {
    auto four = [&](int k) {
      const uint16x4_t x = vld1_u16(reinterpret_cast<const uint16_t*>(p) + 4 * k);
      return __is_same(F, F16) ? vcvt_f32_f16(vreinterpret_f16_u16(x)) : vreinterpretq_f32_u32(vshll_n_u16(x, 16));
    };
    return {{four(0), four(1), four(2), four(3)}};
  }
#endif
  if (__is_same(F, F32)) return sixteen(reinterpret_cast<const float*>(p));
  float x[16];
  for (int i = 0; i < 16; i++) x[i] = F::at(p + i * F::bytes);
  return sixteen(x);
}

// `n` numbers as floats, and zeros up to a whole sixteen.
template <class F>
inline void widen(const uint8_t* from, int n, float* to) {
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    const Sixteen x = numbers<F>(from + size_t(i) * F::bytes);
    __builtin_memcpy(to + i, &x, sizeof x);
  }
  for (; i < n; i++) to[i] = F::at(from + size_t(i) * F::bytes);
  for (; i % 16; i++) to[i] = 0.0f;
}

inline float tree(const Sixteen& lanes) {
#if defined(AVX512_LEVEL) || defined(AVX256_LEVEL)
#if defined(AVX512_LEVEL)
  const __m256 low = _mm512_castps512_ps256(lanes.v), high = _mm512_extractf32x8_ps(lanes.v, 1);
#else
  const __m256 low = lanes.low, high = lanes.high;
#endif
  const __m256 eight = _mm256_add_ps(low, high);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
  float v[16];
  __builtin_memcpy(v, &lanes, sizeof v);
  for (int width = 8; width; width /= 2)
    for (int i = 0; i < width; i++) v[i] = v[i] + v[i + width];
  return v[0];
#endif
}

constexpr int plain_chunk = 512;  // elements of a row that are widened at once
constexpr int plain_tokens = 64;
#if defined(AVX512_LEVEL)
constexpr int rows_a_tile = 4, tokens_a_tile = 6;  // whose sums fit into the registers
#else
constexpr int rows_a_tile = 2, tokens_a_tile = 3;
#endif

// ROWS rows of widened numbers times T tokens; the sums go on from where they are.
template <int ROWS, int T>
inline void add_products(const float (*w)[plain_chunk], const float* const* x, int from, int n,
                         Sixteen (*sum)[plain_tokens]) {
  Sixteen s[ROWS][T];
  for (int r = 0; r < ROWS; r++)
    for (int t = 0; t < T; t++) s[r][t] = sum[r][t];
  for (int i = 0; i < n; i += 16)
    for (int t = 0; t < T; t++) {
      Sixteen y = sixteen(x[t] + from + i);
      for (int r = 0; r < ROWS; r++) s[r][t] = fused(sixteen(w[r] + i), y, s[r][t]);
    }
  for (int r = 0; r < ROWS; r++)
    for (int t = 0; t < T; t++) sum[r][t] = s[r][t];
}

template <class F, int ROWS>
inline void plain_strip(const Job& job, int row, int from, int tokens) {
  alignas(64) float w[ROWS][plain_chunk];
  Sixteen sum[ROWS][plain_tokens];
  const float* x[plain_tokens];
  for (int t = 0; t < tokens; t++) {
    x[t] = job.floats(from + t);
    for (int r = 0; r < ROWS; r++) sum[r][t] = zeros();
  }
  for (int i = 0; i < job.cols; i += plain_chunk) {
    int n = job.cols - i < plain_chunk ? job.cols - i : plain_chunk, t = 0;
    for (int r = 0; r < ROWS; r++)
      widen<F>(job.weights + size_t(row + r) * job.row_bytes + size_t(i) * F::bytes, n, w[r]);
    for (constexpr int T = tokens_a_tile; t + T <= tokens; t += T)
      add_products<ROWS, T>(w, x + t, i, n, (Sixteen(*)[plain_tokens])(&sum[0][t]));
    for (; t + 2 <= tokens; t += 2) add_products<ROWS, 2>(w, x + t, i, n, (Sixteen(*)[plain_tokens])(&sum[0][t]));
    for (; t < tokens; t++) add_products<ROWS, 1>(w, x + t, i, n, (Sixteen(*)[plain_tokens])(&sum[0][t]));
  }
  for (int t = 0; t < tokens; t++)
    for (int r = 0; r < ROWS; r++) job.out[from + t][row + r] = tree(sum[r][t]);
}

// One token: ROWS rows as they lie.
template <class F, int ROWS>
inline void plain_stream(const Job& job, int row) {
  const uint8_t* w[ROWS];
  const float* x = job.floats(0);
  Sixteen sum[ROWS];
  for (int r = 0; r < ROWS; r++) w[r] = job.weights + size_t(row + r) * job.row_bytes, sum[r] = zeros();
  int i = 0;
  for (; i + 16 <= job.cols; i += 16) {
    const Sixteen y = sixteen(x + i);
    for (int r = 0; r < ROWS; r++) sum[r] = fused(numbers<F>(w[r] + size_t(i) * F::bytes), y, sum[r]);
  }
  if (i < job.cols) {
    alignas(64) uint8_t last[16 * F::bytes] = {};
    for (int r = 0; r < ROWS; r++) {
      __builtin_memcpy(last, w[r] + size_t(i) * F::bytes, size_t(job.cols - i) * F::bytes);
      sum[r] = fused(numbers<F>(last), sixteen(x + i), sum[r]);
    }
  }
  for (int r = 0; r < ROWS; r++) job.out[0][row + r] = tree(sum[r]);
}

template <class F>
void plain_rows(const Job& job) {
  if (job.tokens == 1) {
    int row = job.begin;
    for (; row + 4 <= job.end; row += 4) plain_stream<F, 4>(job, row);
    for (; row < job.end; row++) plain_stream<F, 1>(job, row);
    return;
  }
  for (int from = 0; from < job.tokens; from += plain_tokens) {
    int tokens = job.tokens - from < plain_tokens ? job.tokens - from : plain_tokens, row = job.begin;
    for (constexpr int R = rows_a_tile; row + R <= job.end; row += R) plain_strip<F, R>(job, row, from, tokens);
    for (; row < job.end; row++) plain_strip<F, 1>(job, row, from, tokens);
  }
}

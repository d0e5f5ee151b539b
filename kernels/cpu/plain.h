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

#if defined(AVX256_LEVEL)
template <class F>
inline __m256 numbers(const uint8_t* p, int k) {  // the kth eight of sixteen
  if (__is_same(F, F32)) return _mm256_loadu_ps(reinterpret_cast<const float*>(p) + 8 * k);
  const __m128i bits = _mm_loadu_si128((const __m128i*)p + k);
  if (__is_same(F, F16)) return _mm256_cvtph_ps(bits);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
#endif

template <class F>
inline Sixteen numbers(const uint8_t* p) {  // sixteen
#if defined(AVX512_LEVEL)
  if (F::bytes == 2) {
    const __m256i bits = _mm256_loadu_si256((const __m256i*)p);
    if (__is_same(F, F16)) return {_mm512_cvtph_ps(bits)};
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
  }
#elif defined(AVX256_LEVEL)
  return {numbers<F>(p, 0), numbers<F>(p, 1)};
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

constexpr int plain_chunk = 512;  // elements of a row that are multiplied at once
constexpr int plain_tokens = 64;

// Sixteen lanes are `parts` registers. A level widens a chunk first, or numbers on their way into a register.
#if defined(AVX256_LEVEL)
using Part = __m256;
constexpr int parts = 2, rows_a_tile = 3, tokens_a_tile = 4;
constexpr bool widens_first = false;
inline Part& part(Sixteen& x, int k) { return k ? x.high : x.low; }
inline Part fused(Part a, Part b, Part c) { return _mm256_fmadd_ps(a, b, c); }
#else
using Part = Sixteen;
#if defined(AVX512_LEVEL)
constexpr int parts = 1, rows_a_tile = 4, tokens_a_tile = 6;
#else
constexpr int parts = 1, rows_a_tile = 2, tokens_a_tile = 3;
#endif
constexpr bool widens_first = true;
inline Part& part(Sixteen& x, int) { return x; }
template <class F>
inline Part numbers(const uint8_t* p, int) {
  return numbers<F>(p);
}
#endif

// `n` numbers of ROWS rows, at `w`, times those of T tokens from `from` on; the sums go on from where they are.
template <class F, int ROWS, int T>
inline void add_products(const uint8_t* const* w, const float* const* x, int from, int n,
                         Sixteen (*sum)[plain_tokens]) {
#pragma GCC unroll 1
  for (int k = 0; k < parts; k++) {
    Part s[ROWS][T];
    for (int r = 0; r < ROWS; r++)
      for (int t = 0; t < T; t++) s[r][t] = part(sum[r][t], k);
    for (int i = 0; i < n; i += 16) {
      Part v[ROWS];
      for (int r = 0; r < ROWS; r++) v[r] = numbers<F>(w[r] + size_t(i) * F::bytes, k);
      for (int t = 0; t < T; t++) {
        const Part y = numbers<F32>(reinterpret_cast<const uint8_t*>(x[t] + from + i), k);
        for (int r = 0; r < ROWS; r++) s[r][t] = fused(v[r], y, s[r][t]);
      }
    }
    for (int r = 0; r < ROWS; r++)
      for (int t = 0; t < T; t++) part(sum[r][t], k) = s[r][t];
  }
}

// Tokens [t, tokens), T at a time and then fewer.
template <class F, int ROWS, int T = tokens_a_tile>
inline void add_tokens(const uint8_t* const* w, const float* const* x, int from, int n, int t, int tokens,
                       Sixteen (*sum)[plain_tokens]) {
  for (; t + T <= tokens; t += T) add_products<F, ROWS, T>(w, x + t, from, n, (Sixteen(*)[plain_tokens])(&sum[0][t]));
  if constexpr (T > 1) add_tokens<F, ROWS, (T > 4 ? 4 : T / 2)>(w, x, from, n, t, tokens, sum);
}

template <class F, int ROWS>
inline void plain_strip(const Job& job, int row, int from, int tokens) {
  alignas(64) float widened[ROWS][plain_chunk];
  Sixteen sum[ROWS][plain_tokens];
  const float* x[plain_tokens];
  for (int t = 0; t < tokens; t++) {
    x[t] = job.floats(from + t);
    for (int r = 0; r < ROWS; r++) sum[r][t] = zeros();
  }
  for (int i = 0; i < job.cols; i += plain_chunk) {
    const int n = job.cols - i < plain_chunk ? job.cols - i : plain_chunk;
    const uint8_t* w[ROWS];
    for (int r = 0; r < ROWS; r++) w[r] = job.weights + size_t(row + r) * job.row_bytes + size_t(i) * F::bytes;
    if constexpr (!widens_first) {
      if (n % 16 == 0) {
        add_tokens<F, ROWS>(w, x, i, n, 0, tokens, sum);
        continue;
      }
    }
    for (int r = 0; r < ROWS; r++) {
      widen<F>(w[r], n, widened[r]);
      w[r] = reinterpret_cast<const uint8_t*>(widened[r]);
    }
    add_tokens<F32, ROWS>(w, x, i, n, 0, tokens, sum);
  }
  for (int t = 0; t < tokens; t++)
    for (int r = 0; r < ROWS; r++) job.out[from + t][row + r] = tree(sum[r][t]);
}

// One token: ROWS rows, each `apart` rows behind the one before.
template <class F, int ROWS>
inline void plain_stream(const Job& job, int row, int apart) {
  const uint8_t* w[ROWS];
  const float* x = job.floats(0);
  Sixteen sum[ROWS];
  for (int r = 0; r < ROWS; r++) w[r] = job.weights + size_t(row + r * apart) * job.row_bytes, sum[r] = zeros();
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
  for (int r = 0; r < ROWS; r++) job.out[0][row + r * apart] = tree(sum[r]);
}

template <class F, int ROWS = rows_a_tile>
inline void plain_strips(const Job& job, int row, int from, int tokens) {
  for (; row + ROWS <= job.end; row += ROWS) plain_strip<F, ROWS>(job, row, from, tokens);
  if constexpr (ROWS > 1) plain_strips<F, ROWS == 3 ? 2 : 1>(job, row, from, tokens);
}

template <class F>
void plain_rows(const Job& job) {
  if (job.tokens == 1) {
    int row = job.begin;
#if defined(AVX256_LEVEL)
    const int apart = rows_apart(job, job.begin, job.end);
    for (int r = 0; r < apart; r++) plain_stream<F, 4>(job, row + r, apart);
    row += 4 * apart;
#endif
    for (; row + 4 <= job.end; row += 4) plain_stream<F, 4>(job, row, 1);
    for (; row < job.end; row++) plain_stream<F, 1>(job, row, 1);
    return;
  }
  for (int from = 0; from < job.tokens; from += plain_tokens)
    plain_strips<F>(job, job.begin, from, job.tokens - from < plain_tokens ? job.tokens - from : plain_tokens);
}

// The floats of 256 elements of 16 rows, behind their integer sums.

// Wide types, from the sums `total` of T tokens: d has their scales, `stride` floats apart, and sums the sums of the
// activations of each 32 or 16, `sum_stride` words apart.
template <class F, int T>
inline __attribute__((always_inline)) void add_wide(const Tile& tile, const float* d, size_t stride,
                                                    const int16_t* sums, size_t sum_stride, const __m512i* total,
                                                    __m512* acc) {
  __m512i low[T];
#pragma GCC unroll 8
  for (int u = 0; u < T; u++) low[u] = _mm512_setzero_si512();
#pragma GCC unroll 8
  for (int i = 0; i < (F::pairs ? 4 : 8) * F::lows; i++)
#pragma GCC unroll 8
    for (int u = 0; u < T; u++)
      low[u] = _mm512_dpwssd_epi32(low[u], tile.low[i], word(sums + size_t(u) * sum_stride + 2 * i));
#pragma GCC unroll 8
  for (int u = 0; u < T; u++) {
    __m512 value = _mm512_mul_ps(tile.d[0], _mm512_cvtepi32_ps(total[u]));
    if (F::lows) value = _mm512_fnmadd_ps(tile.m[0], _mm512_cvtepi32_ps(low[u]), value);
    acc[u] = _mm512_fmadd_ps(_mm512_set1_ps(d[size_t(u) * stride]), value, acc[u]);
  }
}
template <class F, int T>
inline void add_block(const Tile& tile, const Activation* a, const __m512i* total, __m512* acc) {
  constexpr size_t stride = sizeof(Activation) / sizeof(float);
  add_wide<F, T>(tile, a->d, stride, F::pairs ? a->sum32 : a->sum16, 2 * stride, total, acc);
}

// Narrow types: values(j, at, v) gives v[j] of each token, where place(j) == at; d has the tokens' eight scales by
// place, `stride` floats apart.
template <int T, class Values>
inline __attribute__((always_inline)) void add_narrow(const float* d, size_t stride, __m512* acc, Values values) {
  __m512 half[2][T];
  for (int h = 0; h < 2; h++) {    // q[h] + q[h + 2]
    for (int k = 0; k < 2; k++) {  // q[h + 2 k]
      __m512 q[T];
      for (int odd = 0; odd < 2; odd++) {
        const int at = h + 2 * k + 4 * odd;
        __m512 v[T];
        values(2 * (h + 2 * k) + odd, at, v);
        for (int u = 0; u < T; u++) {
          const __m512 dy = _mm512_set1_ps(d[size_t(u) * stride + at]);
          q[u] = odd ? _mm512_fmadd_ps(dy, v[u], q[u]) : _mm512_mul_ps(dy, v[u]);
        }
      }
      for (int u = 0; u < T; u++) half[h][u] = k ? _mm512_add_ps(half[h][u], q[u]) : q[u];
    }
  }
  for (int u = 0; u < T; u++) acc[u] = _mm512_add_ps(acc[u], _mm512_add_ps(half[0][u], half[1][u]));
}

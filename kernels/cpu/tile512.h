// Many tokens on AVX-512: 16 rows x 256 weights are unpacked once into lanes = rows, then 8 tokens share each load.

struct Tile {
  __m512i q[64];  // four neighbouring codes of 16 rows
  __m512i scale[16], low[16];
  __m512 d[8], m[8];
};

inline void transpose16(const __m512i* from, __m512i* to) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_epi32(from[i], from[i + 1]);
    a[i + 1] = _mm512_unpackhi_epi32(from[i], from[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int k = 0; k < 2; k++) {
      b[i + 2 * k] = _mm512_unpacklo_epi64(a[i + k], a[i + 2 + k]);
      b[i + 2 * k + 1] = _mm512_unpackhi_epi64(a[i + k], a[i + 2 + k]);
    }
  // b[4 s + c], part p: column 4 p + c of rows 4 s to 4 s + 3
  for (int c = 0; c < 4; c++) {
    __m512i low01 = _mm512_shuffle_i32x4(b[c], b[4 + c], 0x44), high01 = _mm512_shuffle_i32x4(b[c], b[4 + c], 0xee);
    __m512i low23 = _mm512_shuffle_i32x4(b[8 + c], b[12 + c], 0x44);
    __m512i high23 = _mm512_shuffle_i32x4(b[8 + c], b[12 + c], 0xee);
    to[c] = _mm512_shuffle_i32x4(low01, low23, 0x88);
    to[4 + c] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
    to[8 + c] = _mm512_shuffle_i32x4(high01, high23, 0x88);
    to[12 + c] = _mm512_shuffle_i32x4(high01, high23, 0xdd);
  }
}

template <class F>
void pack(const uint8_t* row, size_t row_bytes, int n, int cols, Codes* codes, Tile& tile) {
  for (int r = 0; r < 16; r++) {
    unpack<F>(row + r * row_bytes, n, cols, codes[r]);
    for (int j = 0; j < (F::wide ? 1 : 8); j++) {
      reinterpret_cast<float*>(&tile.d[j])[r] = codes[r].d[j];
      if (F::lows) reinterpret_cast<float*>(&tile.m[j])[r] = codes[r].m[j];
    }
  }
  __m512i rows[16];
  for (int k = 0; k < 4; k++) {
    for (int r = 0; r < 16; r++) rows[r] = _mm512_load_si512(codes[r].q + 64 * k);
    transpose16(rows, tile.q + 16 * k);
  }
  if (!F::wide) return;
  for (int r = 0; r < 16; r++) rows[r] = _mm512_load_si512(codes[r].scale);
  transpose16(rows, tile.scale);
  if (!F::lows) return;
  for (int r = 0; r < 16; r++) rows[r] = _mm512_load_si512(codes[r].low);
  transpose16(rows, tile.low);
}

// dot[u]: sums of (q - BIAS) * y over 4 * COLUMNS elements from column c, 16 rows at once.
template <int BIAS, int COLUMNS, int T>
inline void dots(const Tile& tile, const Activation* const* a, int c, __m512i* dot) {
  for (int u = 0; u < T; u++) {
    int sum = a[u]->sum[c / 4];
    if (COLUMNS == 8) sum += a[u]->sum[c / 4 + 1];
    dot[u] = BIAS ? _mm512_set1_epi32(-BIAS * sum) : _mm512_setzero_si512();
  }
#pragma GCC unroll 8
  for (int i = 0; i < COLUMNS; i++)
    for (int u = 0; u < T; u++)
      dot[u] = _mm512_dpbusd_epi32(dot[u], tile.q[c + i], _mm512_set1_epi32(load<int32_t>((const uint8_t*)a[u]->q + 4 * (c + i))));
}

template <class F, int T>
__attribute__((noinline)) void wide_tile(const Tile& tile, const Activation* const* a, __m512* acc) {
  constexpr int columns = F::pairs ? 8 : 4, groups = columns / 4;
  __m512i total[T], low[T], dot[T];
  for (int u = 0; u < T; u++) total[u] = low[u] = _mm512_setzero_si512();
  for (int g = 0; g < 16; g += groups) {
    dots<F::bias, columns, T>(tile, a, 4 * g, dot);
    for (int u = 0; u < T; u++) total[u] = _mm512_add_epi32(total[u], _mm512_mullo_epi32(dot[u], tile.scale[g]));
  }
  for (int u = 0; u < T; u++) {
    __m512 value = _mm512_mul_ps(tile.d[0], _mm512_cvtepi32_ps(total[u]));
    if (F::lows) {
      for (int g = 0; g < 16; g += groups) {
        int sum = a[u]->sum[g] + (F::pairs ? a[u]->sum[g + 1] : 0);
        low[u] = _mm512_add_epi32(low[u], _mm512_mullo_epi32(tile.low[g], _mm512_set1_epi32(sum)));
      }
      value = _mm512_sub_ps(value, _mm512_mul_ps(tile.m[0], _mm512_cvtepi32_ps(low[u])));
    }
    acc[u] = _mm512_add_ps(acc[u], _mm512_mul_ps(_mm512_set1_ps(a[u]->d[0]), value));
  }
}

template <class F, int T>
__attribute__((noinline)) void narrow_tile(const Tile& tile, const Activation* const* a, __m512* acc) {
  __m512i dot[T];
  __m512 half_sum[2][T], quarter[2][T];
  for (int half = 0; half < 2; half++) {
    for (int pair = 0; pair < 2; pair++)
      for (int part = 0; part < 2; part++) {
        int j = half + 2 * pair + 4 * part;
        dots<F::bias, 8, T>(tile, a, 8 * j, dot);
        for (int u = 0; u < T; u++) {
          __m512 v = _mm512_mul_ps(tile.d[j], _mm512_cvtepi32_ps(dot[u]));
          if (F::lows) {
            __m512 sum = _mm512_set1_ps(float(a[u]->sum[2 * j] + a[u]->sum[2 * j + 1]));
            v = _mm512_add_ps(v, _mm512_mul_ps(tile.m[j], sum));
          }
          v = _mm512_mul_ps(v, _mm512_set1_ps(a[u]->d[j]));
          quarter[pair][u] = part ? _mm512_add_ps(quarter[pair][u], v) : v;
        }
      }
    for (int u = 0; u < T; u++) half_sum[half][u] = _mm512_add_ps(quarter[0][u], quarter[1][u]);
  }
  for (int u = 0; u < T; u++) acc[u] = _mm512_add_ps(acc[u], _mm512_add_ps(half_sum[0][u], half_sum[1][u]));
}

template <class F, int T>
inline void tile_tokens(const Tile& tile, const Activation* const* a, __m512* acc) {
  if constexpr (F::wide) wide_tile<F, T>(tile, a, acc);
  else narrow_tile<F, T>(tile, a, acc);
}

template <class F>
int tiled_rows(const Job& job, int from, int tokens) {
  if (tokens < 2) return job.begin;
  const int chunks = (job.cols + 255) / 256;
  Codes codes[16] = {};
  Tile tile;
  __m512 acc[tokens_at_once];
  const Activation* a[tokens_at_once];
  int r = job.begin;
  for (; r + 16 <= job.end; r += 16) {
    for (int t = 0; t < tokens; t++) acc[t] = _mm512_setzero_ps();
    for (int n = 0; n < chunks; n++) {
      pack<F>(job.weights + size_t(r) * job.row_bytes, job.row_bytes, n, job.cols, codes, tile);
      for (int t = 0; t < tokens; t++) a[t] = static_cast<const Activation*>(job.x[from + t]) + n;
      int t = 0;
      for (; t + 8 <= tokens; t += 8) tile_tokens<F, 8>(tile, a + t, acc + t);
      for (; t + 4 <= tokens; t += 4) tile_tokens<F, 4>(tile, a + t, acc + t);
      for (; t < tokens; t++) tile_tokens<F, 1>(tile, a + t, acc + t);
    }
    for (int t = 0; t < tokens; t++) _mm512_storeu_ps(job.out[from + t] + r, acc[t]);
  }
  return r;
}

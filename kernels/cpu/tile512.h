// Many tokens: 16 rows x 256 weights are unpacked once into lanes = rows, then 8 tokens share each load.

struct Tile {
  __m512i q[64];      // four neighbouring codes of 16 rows; biased ones are moved to a bias of 128
  __m512i scale[16];  // of each group, or of each pair
  __m512i low[8];     // int16 of two neighbouring groups or pairs
  __m512 d[8], m[8];  // by place
};

// Four 32-bit columns of 16 rows that are `stride` bytes apart.
inline void columns4(const char* p, size_t stride, __m512i* to) {
  __m512i v[4];
  for (int i = 0; i < 4; i++) {
    auto row = [&](int r) { return _mm_loadu_si128((const __m128i*)(p + (i + r) * stride)); };
    __m512i x = _mm512_castsi128_si512(row(0));
    x = _mm512_mask_broadcast_i32x4(x, 0x00f0, row(4));
    x = _mm512_mask_broadcast_i32x4(x, 0x0f00, row(8));
    v[i] = _mm512_mask_broadcast_i32x4(x, 0xf000, row(12));
  }
  __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
  __m512i c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
  to[0] = _mm512_unpacklo_epi64(a, c);
  to[1] = _mm512_unpackhi_epi64(a, c);
  to[2] = _mm512_unpacklo_epi64(b, d);
  to[3] = _mm512_unpackhi_epi64(b, d);
}

struct alignas(64) Unpacked {  // 16 rows of one block
  uint8_t q[16][256];
  int16_t scale[16][16], low[16][16];
  uint32_t d[16];
  float df[16][8], mf[16][8];
};

template <class F>
void pack_wide(const uint8_t* s, size_t row_bytes, Unpacked& u, Tile& tile) {
  for (int r = 0; r < 16; r++, s += row_bytes) {
    __m512i q[4];
    F::codes(s, q);
    for (int k = 0; k < 4; k++) {
      if constexpr (F::signs) q[k] = _mm512_mask_sub_epi8(_mm512_add_epi8(q[k], byte64(128)), F::negative(s, k), byte64(128), q[k]);
      else if (F::bias) q[k] = _mm512_add_epi8(q[k], byte64(128 - F::bias));
      _mm512_store_si512(u.q[r] + 64 * k, q[k]);
    }
    Scales sc = F::scales(s);
    _mm256_store_si256((__m256i*)u.scale[r], sc.scale);
    if (F::lows) _mm256_store_si256((__m256i*)u.low[r], sc.low);
    u.d[r] = F::d(s);
  }
  for (int i = 0; i < 16; i++) columns4((const char*)u.q[0] + 16 * i, 256, tile.q + 4 * F::group[i]);
  for (int h = 0; h < (F::pairs ? 1 : 2); h++) {
    __m512i two[4];
    columns4((const char*)u.scale[0] + 16 * h, 32, two);
    for (int i = 0; i < 4; i++) {
      tile.scale[8 * h + 2 * i] = _mm512_srai_epi32(_mm512_slli_epi32(two[i], 16), 16);
      tile.scale[8 * h + 2 * i + 1] = _mm512_srai_epi32(two[i], 16);
    }
    if (F::lows) columns4((const char*)u.low[0] + 16 * h, 32, tile.low + 4 * h);
  }
  __m512i dm = _mm512_load_si512(u.d);
  tile.d[0] = _mm512_mul_ps(_mm512_cvtph_ps(_mm512_cvtepi32_epi16(dm)), _mm512_set1_ps(F::factor));
  if (F::lows) tile.m[0] = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(dm, 16)));
}

template <class F>
void pack_narrow(const uint8_t* s, size_t row_bytes, int blocks, Unpacked& u, Tile& tile) {
  alignas(64) uint8_t end[8 * F::bytes];
  for (int r = 0; r < 16; r++, s += row_bytes) {
    const uint8_t* from = s;
    if (blocks < 8) {
      __builtin_memset(end, 0, sizeof end);
      __builtin_memcpy(end, s, size_t(blocks) * F::bytes);
      from = end;
    }
    for (int k = 0; k < 4; k++) {
      __m512i q = F::two(from + 2 * k * F::bytes);
      if (F::bias) q = _mm512_add_epi8(q, byte64(128 - F::bias));
      _mm512_store_si512(u.q[r] + 64 * k, q);
    }
    _mm256_store_ps(u.df[r], F::d(from));
    if (F::lows) _mm256_store_ps(u.mf[r], F::m(from));
  }
  for (int i = 0; i < 16; i++) columns4((const char*)u.q[0] + 16 * i, 256, tile.q + 4 * i);
  for (int h = 0; h < 2; h++) {
    columns4((const char*)u.df[0] + 16 * h, 32, (__m512i*)tile.d + 4 * h);
    if (F::lows) columns4((const char*)u.mf[0] + 16 * h, 32, (__m512i*)tile.m + 4 * h);
  }
}

inline __m512i word(const void* p) { return _mm512_set1_epi32(load<int32_t>(p)); }

// dot[u]: sums of code * y over 4 * COLUMNS elements from column c, 16 rows at once.
template <int COLUMNS, int T>
inline __attribute__((always_inline)) void dots(const Tile& tile, const Activation* a, int c, __m512i* dot) {
#pragma GCC unroll 8
  for (int i = 0; i < COLUMNS; i++) {
    __m512i q = tile.q[c + i];
#pragma GCC unroll 8
    for (int u = 0; u < T; u++) dot[u] = _mm512_dpbusd_epi32(dot[u], q, word(a[u].q + 4 * (c + i)));
  }
}

template <class F, int T>
__attribute__((noinline)) void wide_tile(const Tile& tile, const Activation* a, __m512* acc) {
  constexpr int columns = F::pairs ? 8 : 4, groups = 64 / columns;
  constexpr bool biased = F::bias || F::signs;
  __m512i total[T];
  for (int u = 0; u < T; u++) total[u] = _mm512_setzero_si512();
#pragma GCC unroll 1
  for (int g = 0; g < groups; g++) {
    __m512i dot[T];
    for (int u = 0; u < T; u++)
      dot[u] = !biased ? _mm512_setzero_si512() : word(F::pairs ? &a[u].low32[place(g)] : &a[u].low16[g]);
    dots<columns, T>(tile, a, columns * g, dot);
    __m512i scale = tile.scale[g];
    for (int u = 0; u < T; u++) total[u] = _mm512_add_epi32(total[u], _mm512_mullo_epi32(dot[u], scale));
  }
  for (int u = 0; u < T; u++) {
    __m512 value = _mm512_mul_ps(tile.d[0], _mm512_cvtepi32_ps(total[u]));
    if (F::lows) {
      __m512i low = _mm512_setzero_si512();
      for (int i = 0; i < groups / 2; i++)
        low = _mm512_dpwssd_epi32(low, tile.low[i], word(F::pairs ? a[u].sum32 + 2 * i : a[u].sum16 + 2 * i));
      value = _mm512_fnmadd_ps(tile.m[0], _mm512_cvtepi32_ps(low), value);
    }
    acc[u] = _mm512_fmadd_ps(_mm512_set1_ps(a[u].d[0]), value, acc[u]);
  }
}

template <class F, int T>
__attribute__((noinline)) void narrow_tile(const Tile& tile, const Activation* a, __m512* acc) {
  __m512 half[2][T];
  for (int h = 0; h < 2; h++) {    // q[h] + q[h + 2]
    for (int k = 0; k < 2; k++) {  // q[h + 2 k]
      __m512 q[T];
      for (int odd = 0; odd < 2; odd++) {
        const int at = h + 2 * k + 4 * odd, j = 2 * (h + 2 * k) + odd;  // place(j) == at
        __m512i dot[T];
        for (int u = 0; u < T; u++) dot[u] = F::bias ? word(&a[u].low32[at]) : _mm512_setzero_si512();
        dots<8, T>(tile, a, 8 * j, dot);
        for (int u = 0; u < T; u++) {
          __m512 v = _mm512_mul_ps(tile.d[at], _mm512_cvtepi32_ps(dot[u])), d = _mm512_set1_ps(a[u].d[at]);
          if (F::lows) v = _mm512_fmadd_ps(tile.m[at], _mm512_set1_ps(float(a[u].sum32[j])), v);
          q[u] = odd ? _mm512_fmadd_ps(d, v, q[u]) : _mm512_mul_ps(d, v);
        }
      }
      for (int u = 0; u < T; u++) half[h][u] = k ? _mm512_add_ps(half[h][u], q[u]) : q[u];
    }
  }
  for (int u = 0; u < T; u++) acc[u] = _mm512_add_ps(acc[u], _mm512_add_ps(half[0][u], half[1][u]));
}

template <class F, int T>
inline void tile_tokens(const Tile& tile, const Activation* a, __m512* acc) {
  if constexpr (F::wide) wide_tile<F, T>(tile, a, acc);
  else narrow_tile<F, T>(tile, a, acc);
}

constexpr int tokens_at_once = 128;

template <class F>
void quantized_rows(const Job& job) {
  if (job.tokens == 1) return stream<F>(job, 0, job.begin, job.end);
  const int chunks = (job.cols + 255) / 256, strips = job.begin + (job.end - job.begin) / 16 * 16;
  constexpr int size = 256 / F::block * F::bytes;
  Unpacked unpacked;
  Tile tile;
  __m512 acc[tokens_at_once];
  for (int from = 0; from < job.tokens; from += tokens_at_once) {
    const int tokens = job.tokens - from < tokens_at_once ? job.tokens - from : tokens_at_once;
    for (int r = job.begin; r < strips; r += 16) {
      const uint8_t* strip = job.weights + size_t(r) * job.row_bytes;
      for (int t = 0; t < tokens; t++) acc[t] = _mm512_setzero_ps();
      for (int n = 0; n < chunks; n++) {
        if (r + 16 < job.end) {  // the next strip, in the order it lies, while this one is computed
          const char* ahead = (const char*)strip + 16 * job.row_bytes + size_t(n) * 16 * size;
          const char* stop = (const char*)job.weights + size_t(job.end) * job.row_bytes;
          for (int i = 0; i < 16 * size && ahead + i < stop; i += 64) _mm_prefetch(ahead + i, _MM_HINT_T1);
        }
        if constexpr (F::wide) pack_wide<F>(strip + size_t(n) * size, job.row_bytes, unpacked, tile);
        else pack_narrow<F>(strip + size_t(n) * size, job.row_bytes, job.cols / 32 - 8 * n < 8 ? job.cols / 32 - 8 * n : 8, unpacked, tile);
        int t = 0;
        for (; t + 8 <= tokens; t += 8) tile_tokens<F, 8>(tile, &job.at(from + t, n), acc + t);
        for (; t + 4 <= tokens; t += 4) tile_tokens<F, 4>(tile, &job.at(from + t, n), acc + t);
        for (; t < tokens; t++) tile_tokens<F, 1>(tile, &job.at(from + t, n), acc + t);
      }
      for (int t = 0; t < tokens; t++) _mm512_storeu_ps(job.out[from + t] + r, acc[t]);
    }
    for (int t = 0; t < tokens && strips < job.end; t++) stream<F>(job, from + t, strips, job.end);
  }
}

// Many tokens: 16 rows x 256 weights are unpacked once into lanes = rows, in two halves of 8 rows; then 4 tokens share
// each load.

struct Tile {
  __m256i q[128][2];     // four neighbouring codes of 8 rows, or two as words
  __m256i start[64][2];  // what sums of signed codes and unsigned activations start from
  __m256i scale[16][2];  // int16, twice, of each group, or of each pair
  __m256i low[8][2];     // int16, of two neighbouring groups or pairs
  __m256 d[8][2], m[8][2];  // by place; of NVFP4 the scales of the first 16 and of the last
};

// Four 32-bit columns of 8 rows that are `stride` bytes apart, every second register of `to`.
inline void columns4(const void* p, size_t stride, __m256i (*to)[2], int half) {
  __m256i v[4];
  for (int i = 0; i < 4; i++) {
    auto row = [&](int r) { return _mm_loadu_si128((const __m128i*)((const char*)p + (8 * half + r) * stride)); };
    v[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(row(i)), row(i + 4), 1);
  }
  __m256i a = _mm256_unpacklo_epi32(v[0], v[1]), b = _mm256_unpackhi_epi32(v[0], v[1]);
  __m256i c = _mm256_unpacklo_epi32(v[2], v[3]), d = _mm256_unpackhi_epi32(v[2], v[3]);
  to[0][half] = _mm256_unpacklo_epi64(a, c);
  to[1][half] = _mm256_unpackhi_epi64(a, c);
  to[2][half] = _mm256_unpacklo_epi64(b, d);
  to[3][half] = _mm256_unpackhi_epi64(b, d);
}
inline void columns4(const void* p, size_t stride, __m256i (*to)[2]) {
  for (int half = 0; half < 2; half++) columns4(p, stride, to, half);
}

struct alignas(64) Unpacked {  // 16 rows of one block
  uint8_t q[16][256];
  int16_t scale[16][16], low[16][16];
  float d[16][8], m[16][8];
};

#include "dots256.h"

template <class F, int GROUP>
inline void pack_codes(const Unpacked& u, Tile& tile) {
  for (int c = 0; c < 64; c += 4) {
    __m256i q[4][2];
    columns4(u.q[0] + 4 * c, 256, F::bias ? q : tile.q + c);
    if constexpr (words<F>) put_words(q, c, F::wide ? tile.scale[c / 8] : nullptr, tile);
    else if constexpr (F::bias != 0) put_signed<vnni ? GROUP : run<F, GROUP>>(q, c, tile);
  }
}

template <class F>
void pack_wide(const uint8_t* s, size_t row_bytes, Unpacked& u, Tile& tile) {
  constexpr bool eight = Block<F>::eight;
  for (int r = 0; r < 16; r++, s += row_bytes) {
    const Block<F> block(s);
    for (int k = 0; k < 8; k++) _mm256_store_si256((__m256i*)u.q[r] + k, tile_codes(block, k));
    const Scales sc = block.scales();
    _mm256_store_si256((__m256i*)u.scale[r], sc.scale);
    if (F::lows) _mm256_store_si256((__m256i*)u.low[r], sc.low);
    u.d[r][0] = block.d();
    if (F::lows) u.m[r][0] = block.m();
  }
  for (int n = 0; n < (eight ? 1 : 2); n++) {
    __m256i both[4][2];
    columns4(u.scale[0] + 8 * n, 32, both);
    for (int i = 0; i < 4; i++)
      for (int h = 0; h < 2; h++) {
        const __m256i x = both[i][h], even = _mm256_and_si256(x, _mm256_set1_epi32(0xffff));
        const __m256i odd = _mm256_srli_epi32(x, 16);
        tile.scale[8 * n + 2 * i][h] = _mm256_or_si256(even, _mm256_slli_epi32(x, 16));
        tile.scale[8 * n + 2 * i + 1][h] = _mm256_or_si256(odd, _mm256_andnot_si256(_mm256_set1_epi32(0xffff), x));
      }
    if (F::lows) columns4(u.low[0] + 8 * n, 32, tile.low + 4 * n);
  }
  pack_codes<F, F::pairs ? 8 : 4>(u, tile);
  for (int r = 0; r < 16; r++) {
    reinterpret_cast<float*>(tile.d[0])[r] = u.d[r][0];
    if (F::lows) reinterpret_cast<float*>(tile.m[0])[r] = u.m[r][0];
  }
}

template <class F>
void pack_narrow(const uint8_t* s, size_t row_bytes, int blocks, Unpacked& u, Tile& tile) {
  constexpr bool second = F::lows || !F::pairs;
  alignas(32) uint8_t end[256 / F::block * F::bytes];
  for (int r = 0; r < 16; r++, s += row_bytes) {
    const uint8_t* from = s;
    if (blocks < 8) {
      __builtin_memset(end, 0, sizeof end);
      __builtin_memcpy(end, s, size_t(blocks) * 32 / F::block * F::bytes);
      from = end;
    }
    if constexpr (!F::pairs) {
      unpack_by_16<F>(from, u.q[r], u.d[r], u.m[r]);
      continue;
    }
    for (int j = 0; j < 8; j++) _mm256_store_si256((__m256i*)u.q[r] + j, tile_codes_of<F>(from + j * F::bytes));
    _mm256_store_ps(u.d[r], scales_of<F>(from, 0));
    if (F::lows) _mm256_store_ps(u.m[r], scales_of<F>(from, 2));
  }
  pack_codes<F, F::pairs ? 8 : 4>(u, tile);
  for (int n = 0; n < 2; n++) {
    columns4(u.d[0] + 4 * n, 32, (__m256i(*)[2])(tile.d + 4 * n));
    if (second) columns4(u.m[0] + 4 * n, 32, (__m256i(*)[2])(tile.m + 4 * n));
  }
}

template <class F, int T, bool FOUR = false>
__attribute__((noinline)) void wide_tile(const Tile& tile, const Activation* a, const uint8_t* y, __m256 (*acc)[2]) {
  constexpr int columns = F::pairs ? 8 : 4, groups = 64 / columns;
  constexpr bool eight = Block<F>::eight;
  __m256i total[T][2] = {};
  if constexpr (words<F>) {
#pragma GCC unroll 1
    for (int c = 0; c < 128; c += 16) dots<F, 16, T>(tile, y, c, total);
  } else {
#pragma GCC unroll 1
    for (int g = 0; g < groups; g++) {
      const __m256i* by = tile.scale[eight || !F::pairs ? g : 2 * g];
      if constexpr (vnni) {
        __m256i dot[T][2];
        for (int u = 0; u < T; u++)
          for (int h = 0; h < 2; h++) dot[u][h] = F::bias ? tile.start[g][h] : _mm256_setzero_si256();
        dots<F, columns, T>(tile, y, columns * g, dot);
        for (int u = 0; u < T; u++)
          for (int h = 0; h < 2; h++)
            total[u][h] = _mm256_add_epi32(total[u][h], _mm256_mullo_epi32(dot[u][h], _mm256_srai_epi32(by[h], 16)));
      } else {
        add_dots<F, columns, T, FOUR ? 4 : run<F, columns>>(tile, y, columns * g, by, total);
      }
    }
  }
#pragma GCC unroll 4
  for (int u = 0; u < T; u++)
    for (int h = 0; h < 2; h++) {
      __m256i sums = _mm256_setzero_si256();
      if (F::lows)
        for (int i = 0; i < (eight ? 4 : 8); i++) {
          const __m256i y = word(eight ? a[u].sum32 + 2 * i : a[u].sum16 + 2 * i);
          sums = _mm256_add_epi32(sums, _mm256_madd_epi16(tile.low[i][h], y));
        }
      __m256 value = _mm256_mul_ps(tile.d[0][h], _mm256_cvtepi32_ps(total[u][h]));
      if (F::lows) value = _mm256_fnmadd_ps(tile.m[0][h], _mm256_cvtepi32_ps(sums), value);
      acc[u][h] = _mm256_fmadd_ps(_mm256_set1_ps(a[u].d[0]), value, acc[u][h]);
    }
}

// dot[u]: the sums of code * y of the nth COLUMNS columns.
template <class F, int COLUMNS, int T>
inline __attribute__((always_inline)) void sums_of(const Tile& tile, const uint8_t* y, int n, __m256i (*dot)[2]) {
  const __m256i ones[2] = {_mm256_set1_epi16(1), _mm256_set1_epi16(1)};
  for (int u = 0; u < T; u++)
    for (int h = 0; h < 2; h++) dot[u][h] = vnni && F::bias ? tile.start[n][h] : _mm256_setzero_si256();
  if constexpr (vnni) dots<F, COLUMNS, T>(tile, y, COLUMNS * n, dot);
  else if constexpr (words<F>) dots<F, 2 * COLUMNS, T>(tile, y, 2 * COLUMNS * n, dot);
  else add_dots<F, COLUMNS, T, run<F, COLUMNS>>(tile, y, COLUMNS * n, ones, dot);
}

// v[j] of the narrow types, where place(j) == at.
template <class F, int T>
inline __attribute__((always_inline)) void block_values(const Tile& tile, const Activation* a, const uint8_t* y, int j,
                                                        int at, __m256 (*v)[2]) {
  __m256i dot[T][2];
  sums_of<F, F::pairs ? 8 : 4, T>(tile, y, F::pairs ? j : 2 * j, dot);
  for (int u = 0; u < T; u++)
    for (int h = 0; h < 2; h++) {
      v[u][h] = _mm256_mul_ps(tile.d[at][h], _mm256_cvtepi32_ps(dot[u][h]));
      if (F::lows) v[u][h] = _mm256_fmadd_ps(tile.m[at][h], _mm256_set1_ps(float(a[u].sum32[j])), v[u][h]);
    }
  if constexpr (!F::pairs) {
    sums_of<F, 4, T>(tile, y, 2 * j + 1, dot);
    for (int u = 0; u < T; u++)
      for (int h = 0; h < 2; h++) v[u][h] = _mm256_fmadd_ps(tile.m[at][h], _mm256_cvtepi32_ps(dot[u][h]), v[u][h]);
  }
}

template <class F, int T>
__attribute__((noinline)) void narrow_tile(const Tile& tile, const Activation* a, const uint8_t* y, __m256 (*acc)[2]) {
  __m256 value[T][2];
  for (int n = 0; n < 2; n++) {    // q[n] + q[n + 2]
    __m256 pair[T][2];
    for (int k = 0; k < 2; k++) {  // q[n + 2 k]
      __m256 q[T][2];
      for (int odd = 0; odd < 2; odd++) {
        const int at = n + 2 * k + 4 * odd;
        __m256 v[T][2];
        block_values<F, T>(tile, a, y, 2 * (n + 2 * k) + odd, at, v);
        for (int u = 0; u < T; u++)
          for (int h = 0; h < 2; h++) {
            const __m256 d = _mm256_set1_ps(a[u].d[at]);
            q[u][h] = odd ? _mm256_fmadd_ps(d, v[u][h], q[u][h]) : _mm256_mul_ps(d, v[u][h]);
          }
      }
      for (int u = 0; u < T; u++)
        for (int h = 0; h < 2; h++) pair[u][h] = k ? _mm256_add_ps(pair[u][h], q[u][h]) : q[u][h];
    }
    for (int u = 0; u < T; u++)
      for (int h = 0; h < 2; h++) value[u][h] = n ? _mm256_add_ps(value[u][h], pair[u][h]) : pair[u][h];
  }
  for (int u = 0; u < T; u++)
    for (int h = 0; h < 2; h++) acc[u][h] = _mm256_add_ps(acc[u][h], value[u][h]);
}

template <class F, int T, bool FOUR = false>
inline void tile_tokens(const Tile& tile, const Activation* a, const uint8_t* y, __m256 (*acc)[2]) {
  if constexpr (F::wide) wide_tile<F, T, FOUR>(tile, a, y, acc);
  else narrow_tile<F, T>(tile, a, y, acc);
}

template <class F, int T>
inline void last_tokens(const Tile& tile, const Activation* a, const uint8_t* y, __m256 (*acc)[2], int count) {
  if (count == T) tile_tokens<F, T>(tile, a, y, acc);
  else if constexpr (T > 1) last_tokens<F, T - 1>(tile, a, y, acc, count);
}

constexpr int tokens_at_once = 128, strips_at_once = 4;

template <class F>
void quantized_rows(const Job& job) {
  if (job.tokens == 1) return stream<F>(job, 0, job.begin, job.end);
  const int chunks = (job.cols + 255) / 256, strips = job.begin + (job.end - job.begin) / 16 * 16;
  constexpr int size = 256 / F::block * F::bytes;
  Unpacked unpacked;
  Tile tile;
  __m256 sums[strips_at_once][tokens_at_once][2];
  for (int from = 0; from < job.tokens; from += tokens_at_once) {
    const int tokens = job.tokens - from < tokens_at_once ? job.tokens - from : tokens_at_once;
    const Met<F> met(job, from, tokens);
    for (int r = job.begin; r < strips; r += 16) {
      const uint8_t* strip = job.weights + size_t(r) * job.row_bytes;
      __m256(*acc)[2] = sums[(r - job.begin) / 16 % strips_at_once];
      for (int t = 0; t < tokens; t++) acc[t][0] = acc[t][1] = _mm256_setzero_ps();
      for (int n = 0; n < chunks; n++) {
        const int blocks = job.cols / 32 - 8 * n < 8 ? job.cols / 32 - 8 * n : 8;
        Ahead ahead(job, r, strips, size_t(n) * 16 * size, 16 * size, tokens / 4 + 2);
        ahead.ask();
        if constexpr (F::wide) pack_wide<F>(strip + size_t(n) * size, job.row_bytes, unpacked, tile);
        else pack_narrow<F>(strip + size_t(n) * size, job.row_bytes, blocks, unpacked, tile);
        int t = 0;
        for (; t + 4 <= tokens; t += 4) {
          ahead.ask();
          constexpr bool sorts = Met<F>::sorts;
          if (sorts && met.small(t, n)) tile_tokens<F, 4, sorts>(tile, &job.at(from + t, n), met.at(t, n), acc + t);
          else tile_tokens<F, 4>(tile, &job.at(from + t, n), met.at(t, n), acc + t);
        }
        ahead.ask_for_all();
        last_tokens<F, 3>(tile, &job.at(from + t, n), met.at(t, n), acc + t, tokens - t);
      }
      const int done = (r - job.begin) / 16 % strips_at_once + 1;
      if (done < strips_at_once && r + 16 < strips) continue;
      for (int t = 0; t < tokens; t++)  // a token's results together: each token has another page
        for (int s = 0; s < done; s++) {
          float* out = job.out[from + t] + r - 16 * (done - 1 - s);
          for (int h = 0; h < 2; h++) {
            if (job.past) _mm256_stream_ps(out + 8 * h, sums[s][t][h]);
            else _mm256_storeu_ps(out + 8 * h, sums[s][t][h]);
          }
        }
    }
    for (int t = 0; t < tokens && strips < job.end; t++) stream<F>(job, from + t, strips, job.end);
  }
  if (job.past) _mm_sfence();
}

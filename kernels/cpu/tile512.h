// Many tokens: 16 rows x 256 weights are unpacked once into lanes = rows, then up to 8 tokens share each load.

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

// The floats of a block, behind its sums.
template <class F, int T>
inline void add_block(const Tile& tile, const Activation* a, const __m512i* total, __m512* acc) {
  __m512i low[T];
  for (int u = 0; u < T; u++) low[u] = _mm512_setzero_si512();
#pragma GCC unroll 8
  for (int i = 0; i < (F::pairs ? 4 : 8) * F::lows; i++)
#pragma GCC unroll 8
    for (int u = 0; u < T; u++)
      low[u] = _mm512_dpwssd_epi32(low[u], tile.low[i], word(F::pairs ? a[u].sum32 + 2 * i : a[u].sum16 + 2 * i));
#pragma GCC unroll 8
  for (int u = 0; u < T; u++) {
    __m512 value = _mm512_mul_ps(tile.d[0], _mm512_cvtepi32_ps(total[u]));
    if (F::lows) value = _mm512_fnmadd_ps(tile.m[0], _mm512_cvtepi32_ps(low[u]), value);
    acc[u] = _mm512_fmadd_ps(_mm512_set1_ps(a[u].d[0]), value, acc[u]);
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
  add_block<F, T>(tile, a, total, acc);
}

// dot[u]: with the sums of code * y of group g.
template <int T>
inline __attribute__((always_inline)) void add_dots_of_16(const Tile& tile, const Activation* a, int g, __m512i* dot) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++)
#pragma GCC unroll 8
    for (int u = 0; u < T; u++) dot[u] = add_product(dot[u], tile.q[4 * g + i], a[u].q + 16 * g + 4 * i);
}

// Two groups at a time: where their sums fit in words, `SMALL`, one `vpdpwssd` scales and adds both.
template <class F, int T, bool SMALL>
__attribute__((noinline)) void wide_by_twos(const Tile& tile, const Activation* a, __m512* acc) {
  __m512i total[T];
#pragma GCC unroll 8
  for (int u = 0; u < T; u++) total[u] = _mm512_setzero_si512();
#pragma GCC unroll 1
  for (int g = 0; g < 16; g += 2) {
    __m512i even[T], odd[T];
#pragma GCC unroll 8
    for (int u = 0; u < T; u++) even[u] = F::bias ? word(&a[u].low16[g]) : _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int u = 0; u < T; u++) odd[u] = F::bias ? word(&a[u].low16[g + 1]) : _mm512_setzero_si512();
    add_dots_of_16<T>(tile, a, g, even);
    add_dots_of_16<T>(tile, a, g + 1, odd);
    const __m512i scale = tile.scale[g / 2];
    const __m512i first = _mm512_srai_epi32(_mm512_slli_epi32(scale, 16), 16), second = _mm512_srai_epi32(scale, 16);
#pragma GCC unroll 8
    for (int u = 0; u < T; u++) {
      if (SMALL) {
        const __m512i both = _mm512_mask_blend_epi16(odd_words, even[u], _mm512_slli_epi32(odd[u], 16));
        total[u] = _mm512_dpwssd_epi32(total[u], both, scale);
      } else {
        total[u] = _mm512_add_epi32(total[u], _mm512_mullo_epi32(even[u], first));
        total[u] = _mm512_add_epi32(total[u], _mm512_mullo_epi32(odd[u], second));
      }
    }
  }
  add_block<F, T>(tile, a, total, acc);
}

// v[j] of the narrow types, where place(j) == at.
template <class F, int T>
inline __attribute__((always_inline)) void block_values(const Tile& tile, const Activation* a, int j, int at,
                                                        __m512* v) {
  __m512i dot[T];
  if constexpr (F::pairs) {
    for (int u = 0; u < T; u++) dot[u] = F::bias ? word(&a[u].low32[at]) : _mm512_setzero_si512();
    dots<8, T>(tile, a, 8 * j, dot);
    for (int u = 0; u < T; u++) {
      v[u] = _mm512_mul_ps(tile.d[at], _mm512_cvtepi32_ps(dot[u]));
      if (F::lows) v[u] = _mm512_fmadd_ps(tile.m[at], _mm512_set1_ps(float(a[u].sum32[j])), v[u]);
    }
  } else {
    for (int u = 0; u < T; u++) dot[u] = word(&a[u].low16[2 * j]);
    dots<4, T>(tile, a, 8 * j, dot);
    for (int u = 0; u < T; u++) v[u] = _mm512_mul_ps(tile.d[at], _mm512_cvtepi32_ps(dot[u]));
    for (int u = 0; u < T; u++) dot[u] = word(&a[u].low16[2 * j + 1]);
    dots<4, T>(tile, a, 8 * j + 4, dot);
    for (int u = 0; u < T; u++) v[u] = _mm512_fmadd_ps(tile.m[at], _mm512_cvtepi32_ps(dot[u]), v[u]);
  }
}

template <class F, int T>
__attribute__((noinline)) void narrow_tile(const Tile& tile, const Activation* a, __m512* acc) {
  __m512 half[2][T];
  for (int h = 0; h < 2; h++) {    // q[h] + q[h + 2]
    for (int k = 0; k < 2; k++) {  // q[h + 2 k]
      __m512 q[T];
      for (int odd = 0; odd < 2; odd++) {
        const int at = h + 2 * k + 4 * odd;
        __m512 v[T];
        block_values<F, T>(tile, a, 2 * (h + 2 * k) + odd, at, v);
        for (int u = 0; u < T; u++) {
          const __m512 d = _mm512_set1_ps(a[u].d[at]);
          q[u] = odd ? _mm512_fmadd_ps(d, v[u], q[u]) : _mm512_mul_ps(d, v[u]);
        }
      }
      for (int u = 0; u < T; u++) half[h][u] = k ? _mm512_add_ps(half[h][u], q[u]) : q[u];
    }
  }
  for (int u = 0; u < T; u++) acc[u] = _mm512_add_ps(acc[u], _mm512_add_ps(half[0][u], half[1][u]));
}

template <class F, int T>
inline void tile_tokens(const Tile& tile, const Activation* a, __m512* acc) {
  if constexpr (by_twos<F>) {
    bool small = true;
    for (int u = 0; u < T; u++) small &= a[u].size16 * largest<F> <= 32767;
    (small ? wide_by_twos<F, T, true> : wide_by_twos<F, T, false>)(tile, a, acc);
  } else if constexpr (F::wide) {
    wide_tile<F, T>(tile, a, acc);
  } else {
    narrow_tile<F, T>(tile, a, acc);
  }
}

template <class F, int T>
inline void last_tokens(const Tile& tile, const Activation* a, __m512* acc, int count) {
  if (count == T) tile_tokens<F, T>(tile, a, acc);
  else if constexpr (T > 1) last_tokens<F, T - 1>(tile, a, acc, count);
}

constexpr int tokens_at_once = 128, strips_at_once = 4;

template <class F>
void quantized_rows(const Job& job) {
  if (job.tokens == 1) return stream<F>(job, 0, job.begin, job.end);
  const int chunks = (job.cols + 255) / 256, strips = job.begin + (job.end - job.begin) / 16 * 16;
  constexpr int size = 256 / F::block * F::bytes;
  Unpacked unpacked;
  Tile tile;
  __m512 sums[strips_at_once][tokens_at_once + 4];
  for (int from = 0; from < job.tokens; from += tokens_at_once) {
    const int tokens = job.tokens - from < tokens_at_once ? job.tokens - from : tokens_at_once;
    for (int r = job.begin; r < strips; r += 16) {
      const uint8_t* strip = job.weights + size_t(r) * job.row_bytes;
      __m512* acc = sums[(r - job.begin) / 16 % strips_at_once];
      __m512 none = _mm512_setzero_ps();
      asm("" : "+v"(none));  // or `rep stos` is made of it, which is slow to begin
      for (int t = 0; t < tokens; t++) acc[t] = none;
      for (int n = 0; n < chunks; n++) {
        Ahead ahead(job, r, strips, size_t(n) * 16 * size, 16 * size, tokens / 8 + 2);
        ahead.ask();
        const int left = job.cols - 256 * n;
        if constexpr (by_winograd<F>)
          if (winograd_rows<F>(job, strip + size_t(n) * size, n, from, tokens, tile, acc, ahead)) continue;
        if constexpr (by_bytes<F>) pack_bytes(F(), strip + size_t(n) * size, job.row_bytes, tile);
        else if constexpr (F::wide) pack_wide<F>(strip + size_t(n) * size, job.row_bytes, unpacked, tile);
        else if constexpr (!F::pairs) pack_sixteens(F(), strip + size_t(n) * size, job.row_bytes, left, tile);
        else pack_narrow<F>(strip + size_t(n) * size, job.row_bytes, left < 256 ? left / 32 : 8, unpacked, tile);
        int t = 0;
        for (; t + 8 <= tokens; t += 8) {
          ahead.ask();
          tile_tokens<F, 8>(tile, &job.at(from + t, n), acc + t);
        }
        ahead.ask_for_all();
        last_tokens<F, 7>(tile, &job.at(from + t, n), acc + t, tokens - t);
      }
      const int done = (r - job.begin) / 16 % strips_at_once + 1;
      if (done < strips_at_once && r + 16 < strips) continue;
      for (int t = 0; t < tokens; t++)  // a token's results together: each token has another page
        for (int s = 0; s < done; s++) {
          float* to = job.out[from + t] + r - 16 * (done - 1 - s);
          if (job.past) _mm512_stream_ps(to, sums[s][t]);
          else _mm512_storeu_ps(to, sums[s][t]);
        }
    }
    for (int t = 0; t < tokens && strips < job.end; t++) stream<F>(job, from + t, strips, job.end);
  }
  if (job.past) _mm_sfence();
}

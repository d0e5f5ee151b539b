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
  auto values = [&](int j, int at, __m512* v) { block_values<F, T>(tile, a, j, at, v); };
  add_narrow<T>(a->d, sizeof(Activation) / sizeof(float), acc, values);
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

template <class F>
void quantized_rows(const Job& job) {
  if (job.tokens == 1) return stream<F>(job, 0, job.begin, job.end);
  Unpacked unpacked;
  Tile tile;
  auto nothing = [](int, int) {};
  by_strips<F>(job, nothing, [&](const uint8_t* s, int n, int from, int tokens, __m512* acc, Ahead& ahead) {
    if constexpr (by_winograd<F>)
      if (winograd_rows<F>(job, s, n, from, tokens, tile, acc, ahead)) return;
    pack<F>(s, job.row_bytes, job.cols - 256 * n, unpacked, tile);
    int t = 0;
    for (; t + 8 <= tokens; t += 8) {
      ahead.ask();
      tile_tokens<F, 8>(tile, &job.at(from + t, n), acc + t);
    }
    ahead.ask_for_all();
    last_tokens<F, 7>(tile, &job.at(from + t, n), acc + t, tokens - t);
  });
  for (int t = 0, r = job.begin + (job.end - job.begin) / 16 * 16; t < job.tokens && r < job.end; t++)
    stream<F>(job, t, r, job.end);
}

// Many tokens with fewer multiplications: S. Winograd, "A New Algorithm for Inner Product", 1968. Of two codes and two
// activations, q a + r b = (q + b) (r + a) - q r - a b, where the last two belong to the weights or the token alone.
// `vpdpbusd` shares two of four ports with every other multiplication, and additions of bytes have all four: of the
// eight columns of a scale six go by pairs, two are multiplied as they are.
//
// The sums have to stay bytes: codes up to 15 allow activations from -128 to 112. A token whose larger ones are mostly
// above is negated, d and sums with it, and what is still above 112 is cut off and multiplied by itself (`Far`).
//
// Where the sums of a scale fit in 16 bits, one `vpdpwssd` scales and adds them. What the weights have in excess is at
// most 12 * 15 * (15 + 128), so sums start from half of that below; what is left for codes and activations is enough
// for most (`Eight::small`).

// sum + codes * a of four, 16 times. Compilers load `a` before, and instructions that only load get in the way of those
// that share the ports behind them: 64 cycles for a token of a tile, not 59.
inline __m512i add_product(__m512i sum, __m512i codes, const void* a) {
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(codes), "m"(*static_cast<const char(*)[4]>(a)));
  return sum;
}

constexpr int winograd_most = 112;
constexpr int winograd_below = 12 * 15 * (15 + 128) / 2;
constexpr int winograd_small = (32767 - winograd_below) / 15;  // for the activations of a scale above, or below, zero
constexpr int winograd_pairs = 3;                              // of eight columns
constexpr int winograd_paired = 0x3f3f;                        // of 16
constexpr uint64_t winograd_paired_bytes = 0x00ffffff00ffffff;

template <class F>
constexpr bool by_winograd = __is_same(F, Q4_K);

// The columns of eight tokens side by side.
inline void winograd_columns(const int8_t (*q)[256], Eight& to) {
  for (int k = 0; k < 4; k++)
    for (int h = 0; h < 2; h++) {  // of tokens 0 to 3 and 4 to 7
      __m512i v[4], column[4];
      for (int i = 0; i < 4; i++) v[i] = _mm512_load_si512(q[4 * h + i] + 64 * k);
      transpose4(v, column);
      for (int i = 0; i < 4; i++) {
        _mm_store_si128((__m128i*)to.part[2 * k].q[i][4 * h], _mm512_castsi512_si128(column[i]));
        _mm_store_si128((__m128i*)to.part[2 * k].q[i + 4][4 * h], _mm512_extracti32x4_epi32(column[i], 1));
        _mm_store_si128((__m128i*)to.part[2 * k + 1].q[i][4 * h], _mm512_extracti32x4_epi32(column[i], 2));
        _mm_store_si128((__m128i*)to.part[2 * k + 1].q[i + 4][4 * h], _mm512_extracti32x4_epi32(column[i], 3));
      }
    }
}

// What the 8 sums start from: -a * (b + 128), a of the even and b of the odd ones of paired columns of four.
inline void winograd_starts(const __m512i* q, int token, Eight& to) {
  for (int k = 0; k < 4; k++) {
    __m512i odd = _mm512_xor_si512(_mm512_srli_epi64(q[k], 32), byte64(128));
    __m512i even = _mm512_maskz_mov_epi32(0x5555 & winograd_paired, q[k]);
    __m512i sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), odd, even);
    sum = _mm512_add_epi32(sum, _mm512_shuffle_epi32(sum, _MM_PERM_BADC));
    sum = _mm512_add_epi32(sum, _mm512_shuffle_i64x2(sum, sum, 0xb1));
    to.part[2 * k].start[token] = -winograd_below - _mm_cvtsi128_si32(_mm512_castsi512_si128(sum));
    to.part[2 * k + 1].start[token] = -winograd_below - _mm_cvtsi128_si32(_mm512_extracti32x4_epi32(sum, 2));
  }
}

// Whether each 32 of them leave the sums of their scale within 16 bits.
inline bool winograd_fits(const Activation& a) {
  alignas(64) int64_t sizes[4][8];
  for (int k = 0; k < 4; k++) {
    const __m512i size = _mm512_abs_epi8(_mm512_load_si512(a.q + 64 * k));
    _mm512_store_si512(sizes[k], _mm512_sad_epu8(size, _mm512_setzero_si512()));
  }
  bool fits = true;
  for (int i = 0; i < 8; i++) {
    const int64_t* size = sizes[i / 2] + 4 * (i % 2);
    const int64_t sum = a.sum32[i] < 0 ? -a.sum32[i] : a.sum32[i];
    fits &= size[0] + size[1] + size[2] + size[3] + sum <= 2 * winograd_small;
  }
  return fits;
}

// The paired columns of four that have something above `winograd_most`.
inline uint64_t winograd_above(const __m512i* q) {
  uint64_t above = 0;
  for (int k = 0; k < 4; k++) {
    const __m512i rest = _mm512_subs_epi8(_mm512_max_epi8(q[k], byte64(winograd_most)), byte64(winograd_most));
    above |= uint64_t(_mm512_mask_test_epi32_mask(winograd_paired, rest, rest)) << 16 * k;
  }
  return above;
}

// `tokens` <= 128 neighbours in one block.
void put_side_by_side(const Activation* a, int tokens, Eight* to, Far* far) {
  const int eights = (tokens + 7) / 8, room = eights == 16 ? most_far : far_of_eight * eights;
  alignas(64) int8_t all[256], kept[8][256];
  int count = 0;
  for (int t = 0; t < tokens; t++) {
    Eight& e = to[t / 8];
    const int u = t % 8;
    e.small = (u == 0 || e.small) && winograd_fits(a[t]);
    __m512i q[4], opposite[4];
    for (int k = 0; k < 4; k++) {
      q[k] = _mm512_load_si512(a[t].q + 64 * k);
      opposite[k] = _mm512_sub_epi8(_mm512_setzero_si512(), q[k]);
    }
    const uint64_t above = winograd_above(q), below = winograd_above(opposite);
    const bool negated = _mm_popcnt_u64(above) > _mm_popcnt_u64(below);
    for (int k = 0; k < 4; k++) {
      if (negated) q[k] = opposite[k];
      _mm512_store_si512(all + 64 * k, q[k]);
      q[k] = _mm512_mask_min_epi8(q[k], winograd_paired_bytes, q[k], byte64(winograd_most));
      _mm512_store_si512(kept[u] + 64 * k, q[k]);
    }
    winograd_starts(q, u, e);
    const int sign = negated ? -1 : 1;
    e.d[u] = float(sign) * a[t].d[0];
    for (int i = 0; i < 8; i++) e.sum[i / 2][u][i % 2] = int16_t(sign * a[t].sum32[i]);
    e.first[u] = 0;
    for (uint64_t left = negated ? below : above; left; left &= left - 1) {
      if (count == room) {
        to->far = -1;
        return;
      }
      Far& f = far[count++];
      f.column = uint8_t(__builtin_ctzll(left));
      f.follows = e.first[u] > 0;
      e.first[u] = uint8_t(count);
      int sum = 0;
      for (int i = 0; i < 4; i++) sum += f.rest[i] = int8_t(all[4 * f.column + i] - kept[u][4 * f.column + i]);
      f.start = f.column % 2 ? 0 : -128 * sum;
    }
    if (u == 7 || t == tokens - 1) winograd_columns(kept, e);
  }
  to->far = count;
}

// The tile of some tokens; first[0] is what their sums start from, first[i] where the ith Far is a token's last.
template <class F>
inline void winograd_tile(const uint8_t* s, size_t row_bytes, const Far* far, int count, Tile& tile, __m512i* first) {
  first[0] = _mm512_sub_epi32(_mm512_setzero_si512(), pack_moved(F(), s, row_bytes, winograd_below, tile));
  __m512i sum = first[0];
  for (int i = 0; i < count; i++) {
    const Far& f = far[i];
    const __m512i dot = _mm512_dpbusd_epi32(word(&f.start), tile.q[f.column], word(f.rest));
    sum = _mm512_mask_mov_epi32(first[0], __mmask16(-int(f.follows)), sum);
    first[i + 1] = sum = _mm512_add_epi32(sum, _mm512_madd_epi16(dot, tile.scale[f.column / 8]));
  }
}

template <class F, int T, bool SMALL>
__attribute__((noinline)) void winograd_tokens(const Tile& tile, const Eight& a, const __m512i* first, __m512* acc) {
  __m512i total[T], low[T];
#pragma GCC unroll 8
  for (int u = 0; u < T; u++) total[u] = first[a.first[u]];
#pragma GCC unroll 1
  for (int g = 0; g < 8; g++) {
    const auto& part = a.part[g];
    const __m512i *q = tile.q + 8 * g, scale = tile.scale[g];
    __m512i dot[T];
#pragma GCC unroll 8
    for (int u = 0; u < T; u++) dot[u] = word(&part.start[u]);
#pragma GCC unroll 3
    for (int i = 0; i < 2 * winograd_pairs; i += 2) {
      const __m512i even = q[i], odd = q[i + 1], alone = q[2 * winograd_pairs + i / 2 % 2];
#pragma GCC unroll 8
      for (int u = 0; u < T; u++) {
        const __m512i x = _mm512_add_epi8(even, word(&part.q[i + 1][u])), y = _mm512_add_epi8(odd, word(&part.q[i][u]));
        if (i < 4) dot[u] = add_product(dot[u], alone, part.q[2 * winograd_pairs + i / 2][u]);
        dot[u] = _mm512_dpbusd_epi32(dot[u], x, y);
      }
    }
#pragma GCC unroll 8
    for (int u = 0; u < T; u++)
      total[u] = SMALL ? _mm512_dpwssd_epi32(total[u], dot[u], scale)
                       : _mm512_add_epi32(total[u], _mm512_mullo_epi32(dot[u], scale));
  }
#pragma GCC unroll 8
  for (int u = 0; u < T; u++) low[u] = _mm512_setzero_si512();
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++)
#pragma GCC unroll 8
    for (int u = 0; u < T; u++) low[u] = _mm512_dpwssd_epi32(low[u], tile.low[i], word(a.sum[i][u]));
#pragma GCC unroll 8
  for (int u = 0; u < T; u++) {
    __m512 value = _mm512_mul_ps(tile.d[0], _mm512_cvtepi32_ps(total[u]));
    value = _mm512_fnmadd_ps(tile.m[0], _mm512_cvtepi32_ps(low[u]), value);
    acc[u] = _mm512_fmadd_ps(_mm512_set1_ps(a.d[u]), value, acc[u]);
  }
}

template <class F, int T>
inline void last_of_eight(const Tile& tile, const Eight& a, const __m512i* first, __m512* acc, int count) {
  if (count == T) winograd_tokens<F, T, false>(tile, a, first, acc);
  else if constexpr (T > 1) last_of_eight<F, T - 1>(tile, a, first, acc, count);
}

// 16 rows of the nth block times tokens [from, from + tokens), if they lie side by side.
template <class F>
inline bool winograd_rows(const Job& job, const uint8_t* s, int n, int from, int tokens, Tile& tile, __m512* acc,
                          Ahead& ahead) {
  const Eight* e = job.eights ? job.eights_at(from, n) : nullptr;
  if (!e || e->far < 0) return false;
  __m512i first[1 + most_far];
  winograd_tile<F>(s, job.row_bytes, job.fars_at(from, n), e->far, tile, first);
  int t = 0;
  for (; t + 8 <= tokens; t += 8) {
    ahead.ask();
    (e[t / 8].small ? winograd_tokens<F, 8, true> : winograd_tokens<F, 8, false>)(tile, e[t / 8], first, acc + t);
  }
  ahead.ask_for_all();
  last_of_eight<F, 7>(tile, e[t / 8], first, acc + t, tokens - t);
  return true;
}

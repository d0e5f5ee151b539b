// Many tokens by AMX: a tile of 16 rows x 256 weights, packed as for VNNI, is what its registers want, and so are 16
// tokens where they lie.
//
// Wide types: codes are multiplied by their integer scales first, so that all 256 products add up in a register. What
// has no room in a byte becomes two planes of bytes: of Q4_K and Q5_K for the lower and the upper three bits of a
// scale, of signed codes the lower and the upper byte. Narrow types have a float for each 32 elements, whose sums are
// stored one by one.

template <class F>
constexpr bool by_digits = __is_same(F, Q4_K) || __is_same(F, Q5_K);  // codes of up to 31, times up to 7
template <class F>
constexpr bool with_ones() {  // no scales
  if constexpr (F::wide) return F::unscaled;
  else return true;
}
template <class F>
constexpr bool with_sign() {
  if constexpr (F::wide) return F::bias || F::signs;
  else return F::bias > 0;
}
template <class F>
constexpr bool two_planes = !with_ones<F>() && !__is_same(F, Q2_K);
template <class F>
constexpr int second_plane = by_digits<F> ? 3 : 8;  // the bits that it is shifted by

struct Planes {
  __m512i q[2][64];
};

inline __m512i both_words(__m512i x) { return _mm512_mask_blend_epi16(odd_words, x, _mm512_slli_epi32(x, 16)); }

// The scale of four columns from column 4 n, as a word for each two codes.
template <class F>
inline __m512i scale_words(const Tile& tile, int n) {
  if (F::pairs) return both_words(tile.scale[n / 2]);
  if (!by_twos<F>) return both_words(tile.scale[n]);
  const __m512i two = tile.scale[n / 2];
  return n % 2 ? _mm512_mask_blend_epi16(odd_words, _mm512_srli_epi32(two, 16), two) : both_words(two);
}

// Codes times scales as bytes.
template <class F>
inline void make_planes(const Tile& tile, Planes& to) {
  const __m512i upper = _mm512_set1_epi16(short(0xff00));
  auto bytes = [upper](__m512i low, __m512i high) { return _mm512_ternarylogic_epi32(low, upper, high, 0xb8); };
#pragma GCC unroll 1
  for (int n = 0; n < 16; n++) {
    const __m512i scale = scale_words<F>(tile, n), *q = tile.q + 4 * n;
    const __m512i high = by_digits<F> ? _mm512_srli_epi16(scale, 3) : _mm512_slli_epi16(scale, 8);
    const __m512i low = by_digits<F> ? _mm512_and_si512(scale, _mm512_set1_epi16(7)) : scale;
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      __m512i *first = &to.q[0][4 * n + i], *second = &to.q[1][4 * n + i];
      if constexpr (with_ones<F>()) {
        *first = q[i];
      } else if constexpr (!with_sign<F>()) {  // no byte's product reaches the next
        *first = _mm512_mullo_epi16(q[i], low);
        if (two_planes<F>) *second = _mm512_mullo_epi16(q[i], high);
      } else {
        const __m512i even = _mm512_slli_epi16(q[i], 8), odd = _mm512_and_si512(q[i], upper);
        *first = bytes(_mm512_mullo_epi16(q[i], low), _mm512_mullo_epi16(odd, low));
        *second = bytes(_mm512_mulhi_epi16(even, low), _mm512_mulhi_epi16(odd, high));
      }
    }
  }
}

// What tokens have besides their codes, of up to 128 tokens of each block side by side: far apart, in Activations,
// every strip would wait for it.
template <class F>
class Rest {
 public:
  static constexpr int scales = F::wide ? 1 : 8;  // of a token; eight by place
  static constexpr int sums = !F::lows ? 0 : F::pairs ? 8 : 16;  // of each 32 or 16 elements

  Rest(const Job& job, int from, int tokens) {
    const size_t blocks = size_t(job.cols + 255) / 256, all = blocks * tokens_at_once;
    scale_ = reinterpret_cast<float*>(scratch(all * (scales * sizeof(float) + sums * sizeof(int16_t))));
    sum_ = reinterpret_cast<int16_t*>(scale_ + all * scales);
    for (int n = 0; n < int(blocks); n++)
      for (int t = 0; t < tokens; t++) {
        const Activation& a = job.at(from + t, n);
        __builtin_memcpy(scale_ + at(n, t) * scales, a.d, scales * sizeof(float));
        if (F::lows) __builtin_memcpy(sum_ + at(n, t) * sums, F::pairs ? a.sum32 : a.sum16, sums * sizeof(int16_t));
      }
  }
  const float* scale(int n, int t) const { return scale_ + at(n, t) * scales; }
  const int16_t* sum(int n, int t) const { return sum_ + at(n, t) * sums; }

 private:
  static size_t at(int n, int t) { return size_t(n) * tokens_at_once + size_t(t); }
  float* scale_;
  int16_t* sum_;
};

// Tokens in groups of as many rows as a register has; the last group begins earlier, so that all are whole.
struct TokenGroups {
  int tokens, count, rows;
  explicit TokenGroups(int all) : tokens(all), count((all + 15) / 16), rows((all + count - 1) / count) {}
  int first(int group) const { return group * rows < tokens - rows ? group * rows : tokens - rows; }
  int fresh(int group) const { return group * rows; }  // the first token that no group before has
  int end(int group) const { return first(group) + rows; }
};

// Registers 0 to 3 hold sums, 4 and 5 tokens, 6 and 7 weights.
inline TileShapes shapes_of(int tokens, int columns) {
  TileShapes to = {};
  to.palette = 1;
  for (int i = 0; i < 8; i++) {
    to.rows[i] = uint8_t(i < 6 ? tokens : columns / 4);
    to.bytes[i] = uint16_t(i == 4 || i == 5 ? columns : 64);
  }
  return to;
}

// Products whose sums are not floats yet. While the next ones are under way they become floats a part at a time: what
// registers of tiles do and what others do overlaps only where it is near each other.
template <class Sums>
struct Pending {
  const Sums* sums = nullptr;
  int first = 0, from = 0, end = 0;  // the sums' first token; those left to do

  template <class Floats>
  void advance(int tokens, Floats floats) {
    for (int stop = from + tokens < end ? from + tokens : end; from < stop;)
      if (from + 4 <= stop) floats(std::integral_constant<int, 4>(), *sums, from - first, from), from += 4;
      else floats(std::integral_constant<int, 1>(), *sums, from - first, from), from++;
  }
};

struct PlaneSums {
  __m512i of[2][32];  // [plane][token]: 16 rows
};

// Of a group of tokens, or of TWO, of which the second begins `apart` tokens later; `between` is called four times.
template <class F, bool TWO, class Between>
inline __attribute__((always_inline)) void plane_products(const Planes& planes, const Activation* a, int apart,
                                                          PlaneSums& to, Between between) {
  constexpr bool sign = with_sign<F>(), second = two_planes<F>;
  constexpr size_t stride = sizeof(Activation);
  zero_tile<0>();
  if (second) zero_tile<1>();
  if (TWO) zero_tile<2>();
  if (TWO && second) zero_tile<3>();
#pragma GCC unroll 1
  for (int k = 0; k < 4; k++) {
    load_tile<4>(a->q + 64 * k, stride);
    load_tile<6>(planes.q[0] + 16 * k, 64);
    multiply_tiles<sign && !second, 0, 4, 6>();
    if (second) {
      load_tile<7>(planes.q[1] + 16 * k, 64);
      multiply_tiles<sign, 1, 4, 7>();
    }
    if (TWO) {
      load_tile<5>(a[apart].q + 64 * k, stride);
      multiply_tiles<sign && !second, 2, 5, 6>();
      if (second) multiply_tiles<sign, 3, 5, 7>();
    }
    between();
  }
  store_tile<0>(to.of[0], 64);
  if (second) store_tile<1>(to.of[1], 64);
  if (TWO) store_tile<2>(to.of[0] + apart, 64);
  if (TWO && second) store_tile<3>(to.of[1] + apart, 64);
}

template <class F>
void wide_groups(const Tile& tile, const Planes& planes, const Activation* a, const Rest<F>& rest, int n,
                 const TokenGroups& groups, __m512* acc, Ahead& ahead) {
  PlaneSums sums[2];
  Pending<PlaneSums> pending;
  auto floats = [&](auto count, const PlaneSums& from, int at, int t) {
    constexpr int T = decltype(count)::value;
    __m512i total[T];
#pragma GCC unroll 4
    for (int u = 0; u < T; u++) {
      total[u] = from.of[0][at + u];
      if (two_planes<F>) total[u] = _mm512_add_epi32(total[u], _mm512_slli_epi32(from.of[1][at + u], second_plane<F>));
    }
    add_wide<F, T>(tile, rest.scale(n, t), 1, rest.sum(n, t), Rest<F>::sums, total, acc + t);
  };
  auto between = [&] {
    ahead.ask();
    pending.advance(8, floats);
  };
  for (int g = 0; g < groups.count; g += 2) {
    PlaneSums& to = sums[g / 2 % 2];
    const int first = groups.first(g), two = g + 1 < groups.count;
    if (two) plane_products<F, true>(planes, a + first, groups.first(g + 1) - first, to, between);
    else plane_products<F, false>(planes, a + first, 0, to, between);
    pending = {&to, first, groups.fresh(g), groups.end(g + two)};
  }
  ahead.ask_for_all();
  pending.advance(32, floats);
}

struct BlockSums {
  __m512i of[8][16];  // [32 elements][token]
};

template <class F, int C, int AB>
inline void block_product(const Tile& tile, const Activation* a, int j, BlockSums& sums) {
  zero_tile<C>();
  load_tile<4 + AB>(a->q + 32 * j, sizeof(Activation));
  load_tile<6 + AB>(tile.q + 8 * j, 64);
  multiply_tiles<with_sign<F>(), C, 4 + AB, 6 + AB>();
  store_tile<C>(sums.of[j], 64);
}

template <class F>
void narrow_groups(const Tile& tile, const Activation* a, const Rest<F>& rest, int n, const TokenGroups& groups,
                   __m512* acc, Ahead& ahead) {
  BlockSums sums[2];
  Pending<BlockSums> pending;
  auto floats = [&](auto count, const BlockSums& from, int at, int t) {
    constexpr int T = decltype(count)::value;
    add_narrow<T>(rest.scale(n, t), Rest<F>::scales, acc + t, [&](int j, int place, __m512* v) {
      for (int u = 0; u < T; u++) {
        v[u] = _mm512_mul_ps(tile.d[place], _mm512_cvtepi32_ps(from.of[j][at + u]));
        if (F::lows) v[u] = _mm512_fmadd_ps(tile.m[place], _mm512_set1_ps(float(rest.sum(n, t + u)[j])), v[u]);
      }
    });
  };
  for (int g = 0; g < groups.count; g++) {
    const int first = groups.first(g);
    BlockSums& to = sums[g % 2];
#pragma GCC unroll 1
    for (int j = 0; j < 8; j += 4) {
      ahead.ask();
      block_product<F, 0, 0>(tile, a + first, j, to);
      block_product<F, 1, 1>(tile, a + first, j + 1, to);
      pending.advance(4, floats);
      block_product<F, 2, 0>(tile, a + first, j + 2, to);
      block_product<F, 3, 1>(tile, a + first, j + 3, to);
      pending.advance(4, floats);
    }
    pending = {&to, first, groups.fresh(g), groups.end(g)};
  }
  ahead.ask_for_all();
  pending.advance(16, floats);
}

constexpr int least_tokens = 16;  // of a matrix: with fewer VNNI is faster

template <class F>
void tiled_rows(const Job& job) {
  const TileUse use;
  Unpacked unpacked;
  Tile tile;
  Planes planes;
  std::optional<Rest<F>> rest;
  int shaped = 0;
  auto begin = [&](int from, int tokens) {
    rest.emplace(job, from, tokens);
    const int rows = TokenGroups(tokens).rows;
    if (rows != shaped) shape_tiles(shapes_of(shaped = rows, F::wide ? 64 : 32));
  };
  by_strips<F>(job, begin, [&](const uint8_t* s, int n, int from, int tokens, __m512* acc, Ahead& ahead) {
    const TokenGroups groups(tokens);
    const Activation* a = &job.at(from, n);
    pack<F>(s, job.row_bytes, job.cols - 256 * n, unpacked, tile);
    if constexpr (F::wide) {
      make_planes<F>(tile, planes);
      wide_groups<F>(tile, planes, a, *rest, n, groups, acc, ahead);
    } else {
      narrow_groups<F>(tile, a, *rest, n, groups, acc, ahead);
    }
  });
}

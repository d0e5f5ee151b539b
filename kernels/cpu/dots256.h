// Products of a tile's codes with T tokens, in 16 registers. Codes that have a bias in the file are signed in a tile
// and meet activations + 128 as unsigned bytes: sums start from -128 times the codes, which all tokens share. Two
// products add up to 16 bits, where sums may wrap as long as what they mean fits; with VNNI four add up to 32. Without
// it codes of eight bits are words, times their scales where those are integers.

template <class F>
constexpr bool words = !vnni && F::bias == 128;

// The size of a tile's largest code.
template <class F>
constexpr int largest = __is_same(F, IQ3_XXS) ? 62 : F::bias == 64 ? 43 : F::bias ? F::bias :
    __is_same(F, Q5_K) || __is_same(F, Q5_1) ? 31 : 15;

// Of COLUMNS columns those whose products are added in 16 bits.
template <class F, int COLUMNS>
constexpr int run = 32767 / (254 * largest<F>) >= COLUMNS ? COLUMNS : run<F, COLUMNS / 2>;
template <class F>
constexpr int run<F, 0> = 1;

// Of codes of which two columns fit: four, for tokens that are small enough (`Met::small`), as nearly all are.
template <class F, int COLUMNS>
constexpr bool by_four = !vnni && !words<F> && F::bias && run<F, COLUMNS> == 2;

inline __m256i word(const void* p) { return _mm256_set1_epi32(load<int32_t>(p)); }

template <class F>
constexpr int met_bytes = !F::bias ? int(sizeof(Activation)) : words<F> ? 512 : 256;  // from a token to the next

// The activations of `tokens` tokens from `from` as codes of F meet them, block by block.
template <class F>
class Met {
 public:
  static constexpr bool sorts = by_four<F, F::pairs ? 8 : 4>;

  Met(const Job& job, int from, int tokens) : job_(job), from_(from), tokens_(tokens) {
    if (!F::bias) return;
    const int blocks = (job.cols + 255) / 256;
    const size_t bytes = size_t(tokens + 3) * blocks * met_bytes<F>;
    to_ = reinterpret_cast<uint8_t*>(scratch(bytes + (sorts ? size_t(tokens) * blocks : 0)));
    small_ = to_ + bytes;
    for (int n = 0; n < blocks; n++)
      for (int t = 0; t < tokens; t++) {
        const size_t at = size_t(n) * tokens + t;
        put(job.at(from + t, n).q, to_ + at * met_bytes<F>);
        if (sorts) small_[at] = is_small(job.at(from + t, n).q);
      }
  }
  // Whether four columns of the nth block fit for tokens [t, t + 4).
  bool small(int t, int n) const {
    return load<uint32_t>(small_ + size_t(n) * tokens_ + t) == 0x01010101;
  }
  const uint8_t* at(int t, int n) const {
    return F::bias ? to_ + (size_t(n) * tokens_ + t) * met_bytes<F> : (const uint8_t*)job_.at(from_ + t, n).q;
  }

 private:
  // Whether the sizes of any four columns' first two, and last two, activations add up to little enough.
  static bool is_small(const int8_t* q) {
    constexpr int most = 32767 / largest<F>;
    __m256i above = _mm256_setzero_si256();
    for (int k = 0; k < 8; k++) {
      const __m256i size = _mm256_abs_epi8(_mm256_load_si256((const __m256i*)q + k));
      __m256i sum = _mm256_maddubs_epi16(size, byte32(1));
      sum = _mm256_add_epi16(sum, _mm256_shuffle_epi32(sum, 0x4e));
      sum = _mm256_add_epi16(sum, _mm256_shuffle_epi32(sum, 0xb1));
      above = _mm256_or_si256(above, _mm256_cmpgt_epi16(sum, _mm256_set1_epi16(int16_t(most))));
    }
    return _mm256_testz_si256(above, above);
  }
  static void put(const int8_t* q, uint8_t* y) {
    __m256i* to = (__m256i*)y;
    for (int k = 0; k < 8; k++) {
      const __m256i x = _mm256_load_si256((const __m256i*)q + k);
      if (words<F>) {
        to[2 * k] = _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8);
        to[2 * k + 1] = _mm256_srai_epi16(x, 8);
      } else {
        to[k] = _mm256_xor_si256(x, byte32(128));
      }
    }
  }
  const Job& job_;
  int from_, tokens_;
  uint8_t *to_ = nullptr, *small_ = nullptr;
};

template <class F>
inline __m256i column(const uint8_t* y, int u, int c) {  // of token u
  return word(y + u * met_bytes<F> + 4 * c);
}

template <class F>
inline __m256i two_dots(__m256i q, __m256i y) {
  if (words<F>) return _mm256_madd_epi16(q, y);
  return F::bias ? _mm256_maddubs_epi16(y, q) : _mm256_maddubs_epi16(q, y);
}

// total[u] += by times the sums of code * y over columns [c, c + COLUMNS), `here` of them in 16 bits.
template <class F, int COLUMNS, int T, int here>
inline __attribute__((always_inline)) void add_dots(const Tile& tile, const uint8_t* y, int c, const __m256i* by,
                                                    __m256i (*total)[2]) {
  constexpr int starts = here / run<F, COLUMNS>;
#pragma GCC unroll 8
  for (int i = 0; i < COLUMNS; i += here) {
    __m256i sum[T][2];
    auto start = [&](int h) {
      const __m256i(*from)[2] = tile.start + (c + i) / here * starts;
      return starts == 2 ? _mm256_add_epi16(from[0][h], from[1][h]) : from[0][h];
    };
#pragma GCC unroll 8
    for (int k = 0; k < here; k++) {
      const __m256i* q = tile.q[c + i + k];
#pragma GCC unroll 8
      for (int u = 0; u < T; u++) {
        const __m256i at = column<F>(y, u, c + i + k);
        for (int h = 0; h < 2; h++) {
          const __m256i x = two_dots<F>(q[h], at);
          if (k) sum[u][h] = _mm256_add_epi16(sum[u][h], x);
          else sum[u][h] = F::bias ? _mm256_add_epi16(x, start(h)) : x;
          asm("" : "+x"(sum[u][h]));  // or a compiler adds in another order, which takes more registers than there are
        }
      }
    }
#pragma GCC unroll 8
    for (int u = 0; u < T; u++)
      for (int h = 0; h < 2; h++) total[u][h] = _mm256_add_epi32(total[u][h], _mm256_madd_epi16(sum[u][h], by[h]));
  }
}

// dot[u] += the sums of code * y over columns [c, c + COLUMNS): words, or bytes with VNNI.
template <class F, int COLUMNS, int T>
inline __attribute__((always_inline)) void dots(const Tile& tile, const uint8_t* y, int c, __m256i (*dot)[2]) {
#pragma GCC unroll 16
  for (int k = c; k < c + COLUMNS; k++) {
#pragma GCC unroll 8
    for (int u = 0; u < T; u++) {
      const __m256i at = column<F>(y, u, k);
      for (int h = 0; h < 2; h++) {
        const __m256i q = tile.q[k][h];
        if constexpr (words<F>) dot[u][h] = _mm256_add_epi32(dot[u][h], two_dots<F>(q, at));
        else dot[u][h] = F::bias ? four_products(dot[u][h], at, q) : four_products(dot[u][h], q, at);
        asm("" : "+x"(dot[u][h]));
      }
    }
  }
}

// Columns [c, c + 4) of bytes as words, times `scale` where there is one.
inline void put_words(const __m256i (*q)[2], int c, const __m256i* scale, Tile& tile) {
  __m256i(*to)[2] = tile.q + c / 8 * 16 + c % 8;
  for (int k = 0; k < 4; k++)
    for (int h = 0; h < 2; h++) {
      const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(q[k][h], 8), 8), odd = _mm256_srai_epi16(q[k][h], 8);
      to[k][h] = scale ? _mm256_mullo_epi16(even, scale[h]) : even;
      to[k + 8][h] = scale ? _mm256_mullo_epi16(odd, scale[h]) : odd;
    }
}

// Columns [c, c + 4) of signed bytes, and what sums of RUN columns start from.
template <int RUN>
inline void put_signed(const __m256i (*q)[2], int c, Tile& tile) {
  constexpr int here = RUN < 4 ? RUN : 4;
  const __m256i shift = byte32(128);
  for (int h = 0; h < 2; h++)
    for (int i = 0; i < 4; i += here) {
      __m256i& start = tile.start[(c + i) / RUN][h];
      __m256i sum = c % RUN ? start : _mm256_setzero_si256();
      for (int k = i; k < i + here; k++) {
        tile.q[c + k][h] = q[k][h];
        sum = vnni ? _mm256_sub_epi32(sum, four_products(_mm256_setzero_si256(), shift, q[k][h]))
                   : _mm256_sub_epi16(sum, _mm256_maddubs_epi16(shift, q[k][h]));
      }
      start = sum;
    }
}

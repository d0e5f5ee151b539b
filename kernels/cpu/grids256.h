// Blocks of the grid types as registers of 32 codes. A point is loaded by its index; its signs go to what it is
// multiplied with (`products`), or to the point where a code is wanted (`q`).

// Seven signs a byte, and the eighth that makes their number even.
inline __m256i even_signs(__m256i seven) {
  const __m256i odd = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, -128, -128, 0, -128, 0, 0, -128, -128, 0, 0, -128, 0,
                                                                -128, -128, 0));
  const __m256i low = _mm256_shuffle_epi8(odd, lows4(seven)), high = _mm256_shuffle_epi8(odd, highs4(seven));
  return _mm256_or_si256(seven, _mm256_xor_si256(low, high));
}

// Of eight words with four times seven bits each.
inline __m256i even_signs_of_words(__m256i x) {
  __m256i bytes = _mm256_and_si256(x, _mm256_set1_epi32(127));
  bytes = _mm256_or_si256(bytes, _mm256_and_si256(_mm256_slli_epi32(x, 1), _mm256_set1_epi32(127 << 8)));
  bytes = _mm256_or_si256(bytes, _mm256_and_si256(_mm256_slli_epi32(x, 2), _mm256_set1_epi32(127 << 16)));
  bytes = _mm256_or_si256(bytes, _mm256_and_si256(_mm256_slli_epi32(x, 3), _mm256_set1_epi32(127 << 24)));
  return even_signs(bytes);
}

// Points of eight or of four codes. CPUs with AVX-VNNI gather them faster than they insert them; others do not.
template <class I>
inline __m256i four_points(const uint8_t* grid, const I* i, int mask = -1) {
  auto point = [&](int n) { return load<int64_t>(grid + 8 * size_t(i[n] & mask)); };
  return _mm256_setr_epi64x(point(0), point(1), point(2), point(3));
}

template <class I>
inline __m256i eight_points(const uint8_t* grid, const I* i) {
  if (vnni) {
    const __m256i at = sizeof(I) == 1 ? _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(load<int64_t>(i)))
                                      : _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)i));
    return _mm256_i32gather_epi32((const int*)grid, at, 4);
  }
  auto point = [&](int n) { return load<int32_t>(grid + 4 * size_t(i[n])); };
  return _mm256_setr_epi32(point(0), point(1), point(2), point(3), point(4), point(5), point(6), point(7));
}

// 2 n + 1 of sixteen halves of bytes, as words.
inline __m256i odd_of_nibbles(const uint8_t* s) {
  const __m128i x = _mm_cvtsi64_si128(load<int64_t>(s)), m = _mm_set1_epi8(15);
  const __m128i n = _mm_and_si128(_mm_unpacklo_epi8(x, _mm_srli_epi16(x, 4)), m);
  return _mm256_cvtepu8_epi16(_mm_or_si128(_mm_add_epi8(n, n), _mm_set1_epi8(1)));
}
// 2 n + 1 of the last four bits of eight words, as eight words.
inline __m256i odd_of_words(__m256i x) {
  const __m256i n = _mm256_or_si256(_mm256_slli_epi32(_mm256_srli_epi32(x, 28), 1), _mm256_set1_epi32(1));
  return _mm256_permute4x64_epi64(_mm256_packs_epi32(n, n), 0xd8);
}

struct SpreadBits {  // eight times each of four bytes
  alignas(32) uint8_t at[4][32] = {};
  constexpr SpreadBits() {
    for (int k = 0; k < 4; k++)
      for (int i = 0; i < 32; i++) at[k][i] = uint8_t(4 * k + i / 8);
  }
};
constexpr SpreadBits spread_bits;

struct Points {
  static constexpr bool eight = false, centered = true, scaled = true, moved = false;
  alignas(32) uint16_t index[64];
  void keep_index() { asm("" : "+m"(index)); }  // in memory: taken out of registers a place costs twice as much
  __m256i low_signs, high_signs;
  Scales sc;
  float scale;
  Scales scales() const { return sc; }
  float d() const { return scale; }
  float m() const { return 0.0f; }
  void set_signs(__m256i x) {
    low_signs = _mm256_permute4x64_epi64(x, 0x44);
    high_signs = _mm256_permute4x64_epi64(x, 0xee);
  }
  __m256i mask(int k) const {
    const __m256i bit = _mm256_set1_epi64x(int64_t(0x8040201008040201));
    const __m256i spread = _mm256_load_si256((const __m256i*)spread_bits.at[k % 4]);
    const __m256i x = _mm256_shuffle_epi8(k < 4 ? low_signs : high_signs, spread);
    return _mm256_cmpeq_epi8(_mm256_and_si256(x, bit), bit);
  }
};

template <>
struct Block<IQ2_XXS> : Points {
  static constexpr bool eight = true;
  const uint8_t* s;
  explicit Block(const uint8_t* s) : s(s) {
    const __m256i halves = _mm256_setr_epi32(1, 3, 5, 7, 0, 2, 4, 6);
    const __m256i a = _mm256_permutevar8x32_epi32(loaded(s + 2), halves);
    const __m256i b = _mm256_permutevar8x32_epi32(loaded(s + 34), halves);
    const __m256i words = _mm256_permute2x128_si256(a, b, 0x20);
    sc.scale = odd_of_words(words);
    scale = half(s) * 0.125f;
    set_signs(even_signs_of_words(words));
  }
  __m256i points(int k) const {
    return four_points(grids.iq2_xxs, s + 2 + 8 * k);
  }
};

template <>
struct Block<IQ2_XS> : Points {
  const uint8_t* s;
  explicit Block(const uint8_t* s) : s(s) {
    const __m256i a = loaded(s + 2), b = loaded(s + 34);
    const __m256i seven = _mm256_packus_epi16(_mm256_srli_epi16(a, 9), _mm256_srli_epi16(b, 9));
    set_signs(even_signs(_mm256_permute4x64_epi64(seven, 0xd8)));
    sc.scale = odd_of_nibbles(s + 66);
    scale = half(s) * 0.125f;
  }
  __m256i points(int k) const {
    return four_points(grids.iq2_xs, (const uint16_t*)(s + 2 + 8 * k), 511);
  }
};

template <>
struct Block<IQ2_S> : Points {
  explicit Block(const uint8_t* s) {
    const __m256i spread = _mm256_setr_epi8(0, -1, 0, -1, 0, -1, 0, -1, 1, -1, 1, -1, 1, -1, 1, -1,
                                            2, -1, 2, -1, 2, -1, 2, -1, 3, -1, 3, -1, 3, -1, 3, -1);
    const __m256i up = _mm256_set1_epi64x(int64_t(0x0004001000400100));  // two bits each to bits 8 and 9
    for (int h = 0; h < 2; h++) {
      const __m256i low = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)(s + 2 + 16 * h)));
      const __m256i high = _mm256_shuffle_epi8(_mm256_set1_epi32(load<int32_t>(s + 66 + 4 * h)), spread);
      const __m256i two = _mm256_and_si256(_mm256_mullo_epi16(high, up), _mm256_set1_epi16(0x300));
      _mm256_store_si256((__m256i*)index + h, _mm256_or_si256(low, two));
    }
    keep_index();
    set_signs(loaded(s + 34));
    sc.scale = odd_of_nibbles(s + 74);
    scale = half(s) * 0.125f;
  }
  __m256i points(int k) const {
    return four_points(grids.iq2_s, index + 4 * k);
  }
};

template <>
struct Block<IQ3_XXS> : Points {
  static constexpr bool eight = true;
  const uint8_t* s;
  explicit Block(const uint8_t* s) : s(s) {
    const __m256i words = loaded(s + 66);
    sc.scale = odd_of_words(words);
    scale = half(s) * 0.25f;
    set_signs(even_signs_of_words(words));
  }
  __m256i points(int k) const { return eight_points(grids.iq3_xxs, s + 2 + 8 * k); }
};

template <>
struct Block<IQ3_S> : Points {
  static constexpr bool eight = true;
  explicit Block(const uint8_t* s) {
    for (int h = 0; h < 4; h++) {
      const __m256i low = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)(s + 2 + 16 * h)));
      const __m256i bit = _mm256_setr_epi16(
        1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, -32768);
      const __m256i bits = _mm256_and_si256(_mm256_set1_epi16(load<int16_t>(s + 66 + 2 * h)), bit);
      const __m256i ninth = _mm256_and_si256(_mm256_cmpeq_epi16(bits, bit), _mm256_set1_epi16(256));
      _mm256_store_si256((__m256i*)index + h, _mm256_or_si256(low, ninth));
    }
    keep_index();
    const __m128i x = _mm_cvtsi32_si128(load<int32_t>(s + 106));
    const __m128i n = _mm_and_si128(_mm_unpacklo_epi8(x, _mm_srli_epi16(x, 4)), _mm_set1_epi8(15));
    sc.scale = _mm256_castsi128_si256(_mm_cvtepu8_epi16(_mm_or_si128(_mm_add_epi8(n, n), _mm_set1_epi8(1))));
    set_signs(loaded(s + 74));
    scale = half(s);
  }
  __m256i points(int k) const { return eight_points(grids.iq3_s, index + 8 * k); }
};

// IQ1: points moved by an eighth, in eighths.
inline __m256i moved_points(const uint16_t* i, __m256i shift) {
  return _mm256_add_epi8(_mm256_slli_epi64(four_points(grids.iq1, i), 3), shift);
}

template <>
struct Block<IQ1_S> : Points {
  static constexpr bool eight = true, centered = false, moved = true;
  alignas(16) int16_t head[8];
  explicit Block(const uint8_t* s) {
    const __m128i high = _mm_loadu_si128((const __m128i*)(s + 34));
    const __m128i n = _mm_and_si128(_mm_srli_epi16(high, 12), _mm_set1_epi16(7));
    const __m128i scale8 = _mm_or_si128(_mm_add_epi16(n, n), _mm_set1_epi16(1)), down = _mm_srai_epi16(high, 15);
    const __m128i by = _mm_sub_epi16(_mm_andnot_si128(down, _mm_set1_epi16(2)), _mm_set1_epi16(IQ1_S::bias));
    sc.scale = _mm256_castsi128_si256(scale8);
    sc.low = _mm256_castsi128_si256(_mm_mullo_epi16(scale8, by));
    _mm_store_si128((__m128i*)head, _mm_andnot_si128(down, _mm_set1_epi16(0x0202)));
    const __m256i up = _mm256_set1_epi64x(int64_t(0x0000000400200100));
    for (int h = 0; h < 2; h++) {  // a word for four points: bits 0, 3, 6 and 9 to bit 8
      const __m128i a = _mm_unpacklo_epi16(high, high), b = _mm_unpackhi_epi16(high, high);
      const __m128i x = h ? b : a;
      const __m256i four = _mm256_setr_m128i(_mm_unpacklo_epi32(x, x), _mm_unpackhi_epi32(x, x));
      const __m256i moved = _mm256_blend_epi16(_mm256_mullo_epi16(four, up), _mm256_srli_epi16(four, 1), 0x88);
      const __m256i low = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)(s + 2 + 16 * h)));
      _mm256_store_si256((__m256i*)index + h, _mm256_or_si256(low, _mm256_and_si256(moved, _mm256_set1_epi16(0x700))));
    }
    keep_index();
    scale = half(s) * 0.125f;
  }
  __m256i q(int k) const { return moved_points(index + 4 * k, _mm256_set1_epi16(head[k])); }
  __m256i points(int k) const { return four_points(grids.iq1, index + 4 * k); }
};

template <>
struct Block<IQ1_M> : Points {
  static constexpr bool centered = false;
  __m256i up[2];  // 2 of each point that is not moved down
  explicit Block(const uint8_t* s) {
    const uint64_t words = load<uint64_t>(s + 48), tops = words >> 12;
    scale = half(uint16_t((tops & 15) | (tops >> 12 & 0xf0) | (tops >> 24 & 0xf00) | (tops >> 36 & 0xf000))) * 0.125f;
    const __m256i four_times = _mm256_setr_epi8(
      0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3, 4, 5, 4, 5, 4, 5, 4, 5, 6, 7, 6, 7, 6, 7, 6, 7);
    const __m256i three = _mm256_set1_epi64x(int64_t(0x0001000800400200));  // three bits each to bits 9 and above
    __m256i n = _mm256_mullo_epi16(_mm256_shuffle_epi8(_mm256_set1_epi64x(int64_t(words)), four_times), three);
    n = _mm256_and_si256(_mm256_srli_epi16(n, 8), _mm256_set1_epi16(14));
    sc.scale = _mm256_or_si256(n, _mm256_set1_epi16(1));
    for (int h = 0; h < 2; h++) {
      const __m128i x = _mm_cvtsi64_si128(load<int64_t>(s + 32 + 8 * h));
      const __m128i n = _mm_and_si128(_mm_unpacklo_epi8(x, _mm_srli_epi16(x, 4)), _mm_set1_epi8(15));
      const __m256i high = _mm256_slli_epi16(_mm256_cvtepu8_epi16(n), 8);
      const __m256i low = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)(s + 16 * h)));
      _mm256_store_si256((__m256i*)index + h, _mm256_or_si256(low, _mm256_and_si256(high, _mm256_set1_epi16(0x700))));
      up[h] = _mm256_broadcastsi128_si256(_mm_andnot_si128(_mm_srli_epi16(n, 2), _mm_set1_epi8(2)));
    }
    keep_index();
  }
  __m256i q(int k) const {
    const __m256i spread = _mm256_load_si256((const __m256i*)spread_bits.at[k % 4]);
    return moved_points(index + 4 * k, _mm256_shuffle_epi8(up[k / 4], spread));
  }
};

// Digits to the base of three: the highest of each byte, which is then multiplied by three.
struct Digits {
  __m256i x;
  __m256i next() {  // the whole part of 3 x / 256
    const __m256i one = _mm256_cmpeq_epi8(_mm256_max_epu8(x, byte32(86)), x);
    const __m256i two = _mm256_cmpeq_epi8(_mm256_max_epu8(x, byte32(171)), x);
    x = _mm256_add_epi8(x, _mm256_add_epi8(x, x));
    return _mm256_sub_epi8(_mm256_setzero_si256(), _mm256_add_epi8(one, two));
  }
};

template <>
struct Block<TQ1_0> {
  static constexpr bool eight = false, centered = false, scaled = false, moved = false;
  const uint8_t* s;
  __m256i codes[8];
  explicit Block(const uint8_t* s) : s(s) {
    Digits first = {loaded(s)}, second = {_mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)(s + 32)))};
    for (int n = 0; n < 5; n++) codes[n] = first.next();
    __m128i d[5], last[4];
    for (int n = 0; n < 5; n++) d[n] = _mm256_castsi256_si128(second.next());
    Digits third = {_mm256_set1_epi32(load<int32_t>(s + 48))};
    for (int n = 0; n < 4; n++) last[n] = _mm256_castsi256_si128(third.next());
    const __m128i end = _mm_unpacklo_epi64(_mm_unpacklo_epi32(last[0], last[1]), _mm_unpacklo_epi32(last[2], last[3]));
    codes[5] = _mm256_setr_m128i(d[0], d[1]);
    codes[6] = _mm256_setr_m128i(d[2], d[3]);
    codes[7] = _mm256_setr_m128i(d[4], end);
  }
  Scales scales() const { return {_mm256_set1_epi16(1), __m256i()}; }
  float d() const { return half(s + 52); }
  float m() const { return 0.0f; }
  __m256i q(int k) const { return codes[k]; }
};

// What the loops ask of a block: register k's codes, signed where they have a bias; and what is multiplied, unsigned
// and signed bytes, where it meets y.
template <class F>
inline __m256i tile_codes(const Block<F>& b, int k) {
  if constexpr (Block<F>::centered) {
    const __m256i mask = b.mask(k);
    return _mm256_sub_epi8(_mm256_xor_si256(b.points(k), mask), mask);
  } else {
    return F::bias && F::bias != 128 ? _mm256_sub_epi8(b.q(k), byte32(F::bias)) : b.q(k);
  }
}
struct Factors {
  __m256i q, y;
  __m256i two() const { return _mm256_maddubs_epi16(q, y); }
  __m256i four(__m256i sum) const { return four_products(sum, q, y); }
};
template <int BIAS>
inline Factors factors(__m256i q, __m256i y) {  // of codes that are signed where the bias was 128
  if (BIAS == 128) return {_mm256_abs_epi8(q), _mm256_sign_epi8(y, q)};
  return {q, y};
}
template <class F>
inline Factors factors(const Block<F>& b, int k, __m256i y) {
  if constexpr (Block<F>::centered) {
    const __m256i mask = b.mask(k);
    return {b.points(k), _mm256_sub_epi8(_mm256_xor_si256(y, mask), mask)};
  } else if constexpr (Block<F>::moved) {
    return {b.points(k), y};
  } else {
    return factors<F::bias>(b.q(k), y);
  }
}

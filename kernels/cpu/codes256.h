// Blocks as registers of 32 codes in their own order: `q(k)`, those of a bias of 128 without it, as signed bytes.

inline __m256i byte32(int value) { return _mm256_set1_epi8(char(value)); }
inline __m256i loaded(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
inline __m256i lows4(__m256i x) { return _mm256_and_si256(x, byte32(15)); }
inline __m256i highs4(__m256i x) { return lows4(_mm256_srli_epi16(x, 4)); }
inline __m256i nibbles_of(const uint8_t* s) {  // of 16 bytes: the low ones, then the high ones
  const __m256i twice = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)s));
  return lows4(_mm256_srlv_epi32(twice, _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4)));
}
inline __m256i values_of(const uint8_t* table, __m256i q, int flipped = 0) {
  const __m256i values = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i*)table));
  return _mm256_shuffle_epi8(_mm256_xor_si256(values, byte32(flipped)), q);
}
inline __m256i signed_values(const uint8_t* table, __m256i q) { return values_of(table, q, 128); }  // its bias is 128

// `scales`: int16, of 16 groups each, or of the 8 pairs in the lower half where `eight`. Where `moved`, codes are eight
// times `points` and what moves them: `low` times the sums of activations.
template <class F>
struct Block;

struct Lying {  // a block that is read where it lies
  static constexpr bool centered = false, scaled = true, moved = false;
  const uint8_t* s;
  explicit Lying(const uint8_t* s) : s(s) {}
};

template <>
struct Block<Q2_K> : Lying {
  using Lying::Lying;
  static constexpr bool eight = false;
  Scales scales() const { return two_nibbles(s); }
  float d() const { return half(s + 80); }
  float m() const { return half(s + 82); }
  __m256i q(int k) const {
    __m256i x = loaded(s + 16 + k / 4 * 32);
    return _mm256_and_si256(_mm256_srli_epi16(x, k % 4 * 2), byte32(3));
  }
};
template <>
struct Block<Q3_K> : Lying {
  using Lying::Lying;
  static constexpr bool eight = false;
  Scales scales() const { return four_and_two_bits(s + 96); }
  float d() const { return half(s + 108); }
  float m() const { return 0.0f; }
  __m256i q(int k) const {
    __m256i x = loaded(s + 32 + k / 4 * 32), high = loaded(s);
    high = k < 2 ? _mm256_slli_epi16(high, k < 2 ? 2 - k : 0) : _mm256_srli_epi16(high, k < 2 ? 0 : k - 2);
    const __m256i low = _mm256_and_si256(_mm256_srli_epi16(x, k % 4 * 2), byte32(3));
    return _mm256_or_si256(low, _mm256_and_si256(high, byte32(4)));
  }
};
struct SixBits : Lying {  // d, m and eight pairs of six bits before the codes
  using Lying::Lying;
  static constexpr bool eight = true;
  Scales scales() const { return six_bits(s + 4); }
  float d() const { return half(s); }
  float m() const { return half(s + 2); }
};

template <>
struct Block<Q4_K> : SixBits {
  using SixBits::SixBits;
  __m256i q(int k) const {
    __m256i x = loaded(s + 16 + k / 2 * 32);
    return k % 2 ? highs4(x) : lows4(x);
  }
};
template <>
struct Block<Q5_K> : SixBits {
  using SixBits::SixBits;
  __m256i q(int k) const {
    __m256i x = loaded(s + 48 + k / 2 * 32), high = loaded(s + 16);
    high = k < 4 ? _mm256_slli_epi16(high, k < 4 ? 4 - k : 0) : _mm256_srli_epi16(high, k < 4 ? 0 : k - 4);
    return _mm256_or_si256(k % 2 ? highs4(x) : lows4(x), _mm256_and_si256(high, byte32(16)));
  }
};
template <>
struct Block<Q6_K> : Lying {
  using Lying::Lying;
  static constexpr bool eight = false;
  Scales scales() const { return signed_bytes(s + 192); }
  float d() const { return half(s + 208); }
  float m() const { return 0.0f; }
  __m256i q(int k) const {
    __m256i x = loaded(s + k / 4 * 64 + k % 2 * 32), high = loaded(s + 128 + k / 4 * 32);
    const int part = k % 4;
    high = part < 2 ? _mm256_slli_epi16(high, part == 0 ? 4 : 2) : _mm256_srli_epi16(high, part == 2 ? 0 : 2);
    return _mm256_or_si256(part < 2 ? lows4(x) : highs4(x), _mm256_and_si256(high, byte32(0x30)));
  }
};
template <>
struct Block<IQ4_XS> : Lying {
  using Lying::Lying;
  static constexpr bool eight = true;
  Scales scales() const {
    const uint32_t high = load<uint16_t>(s + 2), low = load<uint32_t>(s + 4);
    __m256i nibble = _mm256_srlv_epi32(_mm256_set1_epi32(int(low)), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    __m256i two = _mm256_srlv_epi32(_mm256_set1_epi32(int(high << 4)), _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14));
    nibble = _mm256_and_si256(nibble, _mm256_set1_epi32(15));
    __m256i x = _mm256_or_si256(nibble, _mm256_and_si256(two, _mm256_set1_epi32(0x30)));
    x = _mm256_sub_epi32(x, _mm256_set1_epi32(32));
    x = _mm256_permute4x64_epi64(_mm256_packs_epi32(x, x), 0xd8);
    return {x, x};
  }
  float d() const { return half(s); }
  float m() const { return 0.0f; }
  __m256i q(int k) const { return signed_values(iq4_values, nibbles_of(s + 8 + 16 * k)); }
  void two(int k, __m256i* q) const {  // groups k and k + 1 in the halves, with the bias: their first 16, their last
    const __m256i x = loaded(s + 8 + 16 * k);
    q[0] = values_of(iq4_values, lows4(x));
    q[1] = values_of(iq4_values, highs4(x));
  }
};
template <>
struct Block<TQ2_0> : Lying {
  using Lying::Lying;
  static constexpr bool eight = false, scaled = false;
  Scales scales() const { return {_mm256_set1_epi16(1), __m256i()}; }
  float d() const { return half(s + 64); }
  float m() const { return 0.0f; }
  __m256i q(int k) const {
    return _mm256_and_si256(_mm256_srli_epi16(loaded(s + k / 4 * 32), k % 4 * 2), byte32(3));
  }
};

// Bit i % 8 of byte i / 8 of four bytes -> byte i is 255 or 0.
inline __m256i mask_of_bits(const void* four) {
  const __m256i spread = _mm256_setr_epi8(
    0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
  const __m256i bit = _mm256_set1_epi64x(int64_t(0x8040201008040201));
  __m256i x = _mm256_shuffle_epi8(_mm256_set1_epi32(load<int32_t>(four)), spread);
  return _mm256_cmpeq_epi8(_mm256_and_si256(x, bit), bit);
}

// 32 codes of a block of 32.
template <class F>
inline __m256i codes_of(const uint8_t* s) {
  if constexpr (__is_same(F, Q4_0)) return nibbles_of(s + 2);
  else if constexpr (__is_same(F, Q4_1)) return nibbles_of(s + 4);
  else if constexpr (__is_same(F, Q5_0) || __is_same(F, Q5_1)) {
    constexpr int at = F::lows ? 4 : 2;
    const __m256i high = _mm256_and_si256(mask_of_bits(s + at), byte32(16));
    return _mm256_or_si256(nibbles_of(s + at + 4), high);
  } else if constexpr (__is_same(F, Q8_0)) return loaded(s + 2);
  else if constexpr (__is_same(F, IQ4_NL)) return signed_values(iq4_values, nibbles_of(s + 2));
  else return _mm256_shuffle_epi8(
    _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i*)fp4_values)), nibbles_of(s + 1));
}

template <class F>
inline __m256i tile_codes_of(const uint8_t* s) {
  return F::bias && F::bias != 128 ? _mm256_sub_epi8(codes_of<F>(s), byte32(F::bias)) : codes_of<F>(s);
}

// Two blocks of 32, side by side in the halves of the registers: their first 16 codes, and their last. With VNNI those
// of a bias of 128 have it.
template <class F>
inline void codes_of_two(const uint8_t* a, const uint8_t* b, __m256i* q) {
  auto both = [&](int at) {
    return _mm256_setr_m128i(_mm_loadu_si128((const __m128i*)(a + at)), _mm_loadu_si128((const __m128i*)(b + at)));
  };
  if constexpr (__is_same(F, Q8_0)) {
    const __m256i flipped = byte32(vnni ? 128 : 0);
    q[0] = _mm256_xor_si256(both(2), flipped);
    q[1] = _mm256_xor_si256(both(18), flipped);
    return;
  }
  constexpr int at = F::bytes - 16;
  const __m256i x = both(at);
  q[0] = lows4(x);
  q[1] = highs4(x);
  if constexpr (__is_same(F, Q5_0) || __is_same(F, Q5_1)) {
    const __m128i zeros = _mm_setzero_si128(), spread = _mm_unpacklo_epi64(zeros, _mm_set1_epi8(1));
    const __m256i bit = _mm256_set1_epi64x(int64_t(0x8040201008040201));
    auto bits_of = [&](const uint8_t* s) { return _mm_set1_epi32(load<int32_t>(s + at - 4)); };
    const __m256i high = _mm256_setr_m128i(bits_of(a), bits_of(b));
    for (int h = 0; h < 2; h++) {
      const __m256i which = _mm256_add_epi8(_mm256_broadcastsi128_si256(spread), byte32(2 * h));
      const __m256i bytes = _mm256_shuffle_epi8(high, which);
      const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
      q[h] = _mm256_or_si256(q[h], _mm256_and_si256(set, byte32(16)));
    }
  } else if constexpr (__is_same(F, IQ4_NL)) {
    for (int h = 0; h < 2; h++) q[h] = values_of(iq4_values, q[h], vnni ? 0 : 128);
  } else if constexpr (__is_same(F, MXFP4)) {
    const __m256i values = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i*)fp4_values));
    for (int h = 0; h < 2; h++) q[h] = _mm256_shuffle_epi8(values, q[h]);
  }
}

// d (or m) of eight blocks of 32, the even ones before the odd ones: the first number of 16 bytes of each.
template <class F>
inline __m256 scales_of(const uint8_t* s, int at) {
  auto block = [&](int j) { return _mm_loadu_si128((const __m128i*)(s + j * F::bytes + at)); };
  auto four = [&](int j) {
    const __m128i first = _mm_unpacklo_epi16(block(j), block(j + 2));
    return _mm_unpacklo_epi32(first, _mm_unpacklo_epi16(block(j + 4), block(j + 6)));
  };
  return _mm256_cvtph_ps(_mm_unpacklo_epi64(four(0), four(1)));
}
template <>
inline __m256 scales_of<MXFP4>(const uint8_t* s, int) {
  auto block = [&](int j) { return _mm_loadu_si128((const __m128i*)(s + j * MXFP4::bytes)); };
  auto four = [&](int j) {
    const __m128i first = _mm_unpacklo_epi8(block(j), block(j + 2));
    return _mm_unpacklo_epi16(first, _mm_unpacklo_epi8(block(j + 4), block(j + 6)));
  };
  const __m256i e = _mm256_cvtepu8_epi32(_mm_unpacklo_epi32(four(0), four(1)));
  const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
  const __m256i small = _mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(1)), 21);  // the larger one below two
  return _mm256_castsi256_ps(_mm256_max_epi32(normal, small));
}

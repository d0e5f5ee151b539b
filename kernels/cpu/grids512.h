// The grid types as registers: points fetched from the tables, and masks of what is negative.

template <int BYTES, bool PAIRS>
struct Grid : Wide<BYTES, 0, false, PAIRS> {
  static constexpr bool signs = true;
  static uint32_t d(const uint8_t* s) { return load<uint16_t>(s); }
};

inline __m512i points8(__m512i index, const uint8_t* grid) { return _mm512_i64gather_epi64(index, grid, 8); }
inline __m512i points4(__m512i index, const uint8_t* grid) { return _mm512_i32gather_epi32(index, grid, 4); }
inline __m512i eight_bytes(uint64_t x) { return _mm512_cvtepu8_epi64(_mm_cvtsi64_si128(int64_t(x))); }
inline Scales scaled(__m256i x) { return {x, x}; }

struct IQ2_XXS : Grid<66, true> {
  static constexpr float factor = 0.125f;
  static Scales scales(const uint8_t* s) {
    uint64_t x = 0;
    for (int j = 0; j < 8; j++) x |= uint64_t(2 * (s[2 + 8 * j + 7] >> 4) + 1) << (8 * j);
    return scaled(eight_of(x));
  }
  static void codes(const uint8_t* s, __m512i* q) {
    for (int k = 0; k < 4; k++) {
      uint64_t index = load<uint32_t>(s + 2 + 16 * k) | uint64_t(load<uint32_t>(s + 10 + 16 * k)) << 32;
      q[k] = points8(eight_bytes(index), grids.iq2_xxs);
    }
  }
  static uint64_t negative(const uint8_t* s, int k) {
    return packed_signs(load<uint32_t>(s + 6 + 16 * k), load<uint32_t>(s + 14 + 16 * k));
  }
};
struct IQ2_XS : Grid<74, false> {
  static constexpr float factor = 0.125f;
  static Scales scales(const uint8_t* s) {
    return scaled(sixteen_of(odd_nibbles(load<uint32_t>(s + 66)), odd_nibbles(load<uint32_t>(s + 70))));
  }
  static void codes(const uint8_t* s, __m512i* q) {
    for (int k = 0; k < 4; k++) {
      __m128i word = _mm_and_si128(_mm_loadu_si128((const __m128i*)(s + 2 + 16 * k)), _mm_set1_epi16(511));
      q[k] = points8(_mm512_cvtepu16_epi64(word), grids.iq2_xs);
    }
  }
  static uint64_t negative(const uint8_t* s, int k) {
    __m128i word = _mm_srli_epi16(_mm_loadu_si128((const __m128i*)(s + 2 + 16 * k)), 9);
    return even(uint64_t(_mm_cvtsi128_si64(_mm_cvtepi16_epi8(word))));
  }
};
struct IQ2_S : Grid<82, false> {
  static constexpr float factor = 0.125f;
  static Scales scales(const uint8_t* s) {
    return scaled(sixteen_of(odd_nibbles(load<uint32_t>(s + 74)), odd_nibbles(load<uint32_t>(s + 78))));
  }
  static void codes(const uint8_t* s, __m512i* q) {
    for (int k = 0; k < 4; k++) {
      __m512i high = eight_bytes(_pdep_u64(load<uint16_t>(s + 66 + 2 * k), 0x0303030303030303));
      __m512i index = _mm512_or_si512(eight_bytes(load<uint64_t>(s + 2 + 8 * k)), _mm512_slli_epi64(high, 8));
      q[k] = points8(index, grids.iq2_s);
    }
  }
  static uint64_t negative(const uint8_t* s, int k) { return load<uint64_t>(s + 34 + 8 * k); }
};
struct IQ3_XXS : Grid<98, true> {
  static constexpr float factor = 0.25f;
  static Scales scales(const uint8_t* s) {
    __m256i word = _mm256_loadu_si256((const __m256i*)(s + 66));
    __m256i x = _mm256_or_si256(_mm256_slli_epi32(_mm256_srli_epi32(word, 28), 1), _mm256_set1_epi32(1));
    return scaled(_mm256_castsi128_si256(_mm256_cvtepi32_epi16(x)));
  }
  static void codes(const uint8_t* s, __m512i* q) {
    for (int k = 0; k < 4; k++)
      q[k] = points4(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)(s + 2 + 16 * k))), grids.iq3_xxs);
  }
  static uint64_t negative(const uint8_t* s, int k) {
    return packed_signs(load<uint32_t>(s + 66 + 8 * k), load<uint32_t>(s + 70 + 8 * k));
  }
};
struct IQ3_S : Grid<110, true> {
  static constexpr float factor = 1.0f;
  static Scales scales(const uint8_t* s) { return scaled(eight_of(odd_nibbles(load<uint32_t>(s + 106)))); }
  static void codes(const uint8_t* s, __m512i* q) {
    for (int k = 0; k < 4; k++) {
      __m512i index = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)(s + 2 + 16 * k)));
      __mmask16 high = load<uint16_t>(s + 66 + 2 * k);
      q[k] = points4(_mm512_mask_add_epi32(index, high, index, _mm512_set1_epi32(256)), grids.iq3_s);
    }
  }
  static uint64_t negative(const uint8_t* s, int k) { return load<uint64_t>(s + 74 + 8 * k); }
};

// IQ1: points are -1, 0, 1 (stored + 1), moved by an eighth; codes count eighths, 9 + 8 (g - 1) +- 1.
inline __m512i eighths(__m512i index, __mmask8 down) {
  __m512i shift = _mm512_mask_mov_epi64(byte64(2), down, _mm512_setzero_si512());
  return _mm512_add_epi8(_mm512_slli_epi64(points8(index, grids.iq1), 3), shift);
}
struct IQ1_S : Wide<50, 9, false, true> {
  static constexpr float factor = 0.125f;
  static uint32_t d(const uint8_t* s) { return load<uint16_t>(s); }
  static Scales scales(const uint8_t* s) {
    __m128i high = _mm_srli_epi16(_mm_loadu_si128((const __m128i*)(s + 34)), 12);
    __m128i x = _mm_add_epi16(_mm_slli_epi16(_mm_and_si128(high, _mm_set1_epi16(7)), 1), _mm_set1_epi16(1));
    return scaled(_mm256_castsi128_si256(x));
  }
  static void codes(const uint8_t* s, __m512i* q) {
    for (int k = 0; k < 4; k++) {
      uint32_t a = load<uint16_t>(s + 34 + 4 * k), b = load<uint16_t>(s + 36 + 4 * k);
      uint64_t up = _pdep_u64(a & 0xfff, 0x07070707) | _pdep_u64(b & 0xfff, 0x07070707) << 32;
      __m512i index = _mm512_or_si512(eight_bytes(load<uint64_t>(s + 2 + 8 * k)), _mm512_slli_epi64(eight_bytes(up), 8));
      q[k] = eighths(index, __mmask8((a & 0x8000 ? 0x0f : 0) | (b & 0x8000 ? 0xf0 : 0)));
    }
  }
};
struct IQ1_M : Wide<56, 9, false, false> {
  static constexpr float factor = 0.125f;
  static uint32_t d(const uint8_t* s) { return uint32_t(_pext_u64(load<uint64_t>(s + 48), 0xf000f000f000f000)); }
  static Scales scales(const uint8_t* s) {
    uint64_t packed = _pext_u64(load<uint64_t>(s + 48), 0x0fff0fff0fff0fff), three = 0x0707070707070707;
    uint64_t one = 0x0101010101010101;
    return scaled(sixteen_of(2 * _pdep_u64(packed, three) + one, 2 * _pdep_u64(packed >> 24, three) + one));
  }
  static void codes(const uint8_t* s, __m512i* q) {
    for (int k = 0; k < 4; k++) {
      __m512i high = eight_bytes(nibbles(load<uint32_t>(s + 32 + 4 * k)));
      __m512i up = _mm512_and_si512(high, _mm512_set1_epi64(7)), low = eight_bytes(load<uint64_t>(s + 8 * k));
      __mmask8 down = _mm512_test_epi64_mask(high, _mm512_set1_epi64(8));
      q[k] = eighths(_mm512_or_si512(low, _mm512_slli_epi64(up, 8)), down);
    }
  }
};

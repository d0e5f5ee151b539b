// The integer scales of K types, as words.

struct Scales {  // int16, of 16 groups or 8 pairs of them
  __m256i scale, low;
};

inline __m256i sixteen_of(uint64_t low, uint64_t high) {
  return _mm256_cvtepi8_epi16(_mm_set_epi64x(int64_t(high), int64_t(low)));
}

inline Scales two_nibbles(const uint8_t* s) {  // Q2_K
  __m128i b = _mm_loadu_si128((const __m128i*)s), m = _mm_set1_epi8(15);
  return {_mm256_cvtepu8_epi16(_mm_and_si128(b, m)), _mm256_cvtepu8_epi16(_mm_and_si128(_mm_srli_epi16(b, 4), m))};
}

inline Scales four_and_two_bits(const uint8_t* s) {  // Q3_K
  uint64_t low = load<uint64_t>(s), high = load<uint32_t>(s + 8), m = 0x0303030303030303;
  uint64_t a = (high | high << 30) & m, b = (high >> 4 | high << 26) & m, nibble = 0x0f0f0f0f0f0f0f0f;
  __m256i x = sixteen_of((low & nibble) | a << 4, (low >> 4 & nibble) | b << 4);
  return {_mm256_sub_epi16(x, _mm256_set1_epi16(32)), x};
}

inline Scales six_bits(const uint8_t* s) {  // Q4_K, Q5_K
  uint64_t low = load<uint64_t>(s), high = load<uint32_t>(s + 8), m = 0x0f0f0f0f;
  uint64_t last = (low >> 2 & 0x3030303030303030) | (high & m) | (high >> 4 & m) << 32;
  __m128i x = _mm_set_epi64x(int64_t(last), int64_t(low & 0x3f3f3f3f3f3f3f3f));  // 4 scales, 4 lows, their last four
  __m128i scale = _mm_shuffle_epi8(x, _mm_setr_epi8(0, -1, 1, -1, 2, -1, 3, -1, 8, -1, 9, -1, 10, -1, 11, -1));
  __m128i least = _mm_shuffle_epi8(x, _mm_setr_epi8(4, -1, 5, -1, 6, -1, 7, -1, 12, -1, 13, -1, 14, -1, 15, -1));
  return {_mm256_castsi128_si256(scale), _mm256_castsi128_si256(least)};
}

inline Scales signed_bytes(const uint8_t* s) {  // Q6_K
  __m256i x = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)s));
  return {x, x};
}

// The sums of a rounded block of 256, by instructions that add eight bytes at a time.

inline void add_up(Activation& a) {
  const __m512i zero = _mm512_setzero_si512(), one = _mm512_set1_epi16(1), bias = _mm512_set1_epi8(-128);
  __m512i sum = zero, size = zero;  // words of eight neighbours; sums have 8 * 128 in excess
  for (int k = 3; k >= 0; k--) {
    const __m512i q = _mm512_load_si512(a.q + 64 * k);
    const __m128i sums = _mm512_cvtepi64_epi16(_mm512_sad_epu8(_mm512_xor_si512(q, bias), zero));
    const __m128i sizes = _mm512_cvtepi64_epi16(_mm512_sad_epu8(_mm512_abs_epi8(q), zero));
    sum = _mm512_inserti32x4(_mm512_alignr_epi64(sum, sum, 6), sums, 0);
    size = _mm512_inserti32x4(_mm512_alignr_epi64(size, size, 6), sizes, 0);
  }
  const __m512i sum16 = _mm512_sub_epi32(_mm512_madd_epi16(sum, one), _mm512_set1_epi32(16 * 128));
  const __m256i words = _mm512_cvtepi32_epi16(sum16);
  const __m256i sum32 = _mm256_madd_epi16(words, _mm256_set1_epi16(1));
  const __m256i by_place = _mm256_permutevar8x32_epi32(sum32, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
  _mm256_store_si256((__m256i*)a.sum16, words);
  _mm512_storeu_si512(a.low16, _mm512_slli_epi32(_mm512_sub_epi32(zero, sum16), 7));
  _mm_store_si128((__m128i*)a.sum32, _mm256_cvtepi32_epi16(sum32));
  _mm256_store_si256((__m256i*)a.low32, _mm256_slli_epi32(_mm256_sub_epi32(_mm256_setzero_si256(), by_place), 7));
  a.size16 = int16_t(_mm512_reduce_max_epi32(_mm512_madd_epi16(size, one)));
}

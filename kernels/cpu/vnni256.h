// The products of AVX-VNNI: four of bytes, or two of words, added to a sum of 32 bits.

#if defined(__AVXVNNI__) || defined(__AVX512VNNI__)
constexpr bool vnni = true;
#if defined(__AVXVNNI__)
inline __m256i four_products(__m256i sum, __m256i x, __m256i y) { return _mm256_dpbusd_avx_epi32(sum, x, y); }
inline __m256i word_products(__m256i sum, __m256i x, __m256i y) { return _mm256_dpwssd_avx_epi32(sum, x, y); }
#else
inline __m256i four_products(__m256i sum, __m256i x, __m256i y) { return _mm256_dpbusd_epi32(sum, x, y); }
inline __m256i word_products(__m256i sum, __m256i x, __m256i y) { return _mm256_dpwssd_epi32(sum, x, y); }
#endif
#elif defined(GMOE_VNNI_EMULATED)
constexpr bool vnni = true;
inline __m256i word_products(__m256i sum, __m256i x, __m256i y) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(x, y));
}
inline __m256i four_products(__m256i sum, __m256i x, __m256i y) {  // the even bytes as words, then the odd ones
  const __m256i even = _mm256_and_si256(x, _mm256_set1_epi16(255)), odd = _mm256_srli_epi16(x, 8);
  sum = word_products(sum, even, _mm256_srai_epi16(_mm256_slli_epi16(y, 8), 8));
  return word_products(sum, odd, _mm256_srai_epi16(y, 8));
}
#else
constexpr bool vnni = false;
inline __m256i four_products(__m256i sum, __m256i, __m256i) { return sum; }
inline __m256i word_products(__m256i sum, __m256i, __m256i) { return sum; }
#endif

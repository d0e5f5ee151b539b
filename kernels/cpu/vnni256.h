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
#else
constexpr bool vnni = false;
inline __m256i four_products(__m256i sum, __m256i, __m256i) { return sum; }
inline __m256i word_products(__m256i sum, __m256i, __m256i) { return sum; }
#endif

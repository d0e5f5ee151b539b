// NVFP4, where 16 elements share a scale and 64 a block: sums of 16 become floats before they are added.

// Words with a UE4M3 in each as float16, 2^7 times too small.
inline __m256i as_halves(__m256i x) {
  const __m256i seven = _mm256_set1_epi16(127);
  return _mm256_andnot_si256(_mm256_cmpeq_epi16(x, seven), _mm256_slli_epi16(_mm256_and_si256(x, seven), 7));
}
inline __m256 floats_of(__m128i halves) { return _mm256_mul_ps(_mm256_cvtph_ps(halves), _mm256_set1_ps(128.0f)); }

// 256 activations in the order of codes, of each 64 the first eight of four groups and then their last; behind them the
// bias times the sums of 16: of blocks 0 and 1, then of 2 and 3, two of either, and then their other two.
template <class F>
inline void put_by_16(const Activation& a, int8_t* to) {
  for (int g = 0; g < 16; g++) {
    const int block = g / 4;
    for (int last = 0; last < 2; last++)
      __builtin_memcpy(to + 64 * block + 32 * last + g % 4 * 8, a.q + 16 * g + 8 * last, 8);
    reinterpret_cast<int32_t*>(to + 256)[block / 2 * 8 + g % 4 / 2 * 4 + block % 2 * 2 + g % 2] = F::bias * a.sum16[g];
  }
}

// The values of four blocks of 64, two each, without the scales of activations; y: what `put_by_16` made of these. What
// lies behind a row's end meets zeros, and its scales are numbers whatever they are.
template <class F>
inline __attribute__((always_inline)) __m256 values_by_16(const uint8_t* s, const int8_t* y) {
  const __m256i values = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i*)fp4_values));
  auto block = [&](int i) {  // four words of each group
    const __m256i x = loaded(s + i * F::bytes + 4);
    const __m256i* at = (const __m256i*)(y + 64 * i);
    const __m256i low = _mm256_shuffle_epi8(values, lows4(x)), high = _mm256_shuffle_epi8(values, highs4(x));
    const __m256i first = _mm256_maddubs_epi16(low, _mm256_load_si256(at));
    return _mm256_add_epi16(first, _mm256_maddubs_epi16(high, _mm256_load_si256(at + 1)));
  };
  auto two = [&](int i) {  // the 8 sums of two blocks; eight products fit in 16 bits
    auto add = [](__m256i x, __m256i z) { return _mm256_add_epi16(x, z); };
    const __m256i sums = _mm256_madd_epi16(pairs_added(block(i), block(i + 1), add), _mm256_set1_epi16(1));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(sums, _mm256_load_si256((const __m256i*)(y + 256 + 16 * i))));
  };
  auto scales = [&](int i) {
    auto four = [&](int block) { return _mm_cvtsi32_si128(load<int32_t>(s + block * F::bytes)); };
    return _mm_unpacklo_epi16(four(i), four(i + 1));
  };
  const __m256i d = as_halves(_mm256_cvtepu8_epi16(_mm_unpacklo_epi64(scales(0), scales(2))));
  const __m256 p = _mm256_mul_ps(floats_of(_mm256_castsi256_si128(d)), two(0));
  const __m256 q = _mm256_mul_ps(floats_of(_mm256_extracti128_si256(d, 1)), two(2));
  return _mm256_add_ps(_mm256_shuffle_ps(p, q, 0x88), _mm256_shuffle_ps(p, q, 0xdd));
}

// 256 codes in order less the bias, and the scales of the first and the last 16 of each 32 by place.
template <class F>
inline void unpack_by_16(const uint8_t* s, uint8_t* q, float* d, float* m) {
  const __m128i values = _mm_load_si128((const __m128i*)fp4_values);
  const __m256i table = _mm256_sub_epi8(_mm256_broadcastsi128_si256(values), byte32(F::bias));
  alignas(32) uint16_t scale[16];
  for (int i = 0; i < 4; i++, s += F::bytes) {
    const __m256i x = loaded(s + 4);
    const __m256i low = _mm256_shuffle_epi8(table, lows4(x)), high = _mm256_shuffle_epi8(table, highs4(x));
    const __m256i even = _mm256_unpacklo_epi64(low, high), odd = _mm256_unpackhi_epi64(low, high);  // groups 0, 2; 1, 3
    _mm256_store_si256((__m256i*)(q + 64 * i), _mm256_permute2x128_si256(even, odd, 0x20));
    _mm256_store_si256((__m256i*)(q + 64 * i + 32), _mm256_permute2x128_si256(even, odd, 0x31));
    for (int g = 0; g < 4; g++) scale[g % 2 * 8 + g / 2 * 4 + i] = s[g];
  }
  const __m256i halves = as_halves(_mm256_load_si256((const __m256i*)scale));
  _mm256_store_ps(d, floats_of(_mm256_castsi256_si128(halves)));
  _mm256_store_ps(m, floats_of(_mm256_extracti128_si256(halves, 1)));
}

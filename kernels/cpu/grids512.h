// The grid types as registers: points looked up with byte permutations or fetched from tables, and masks of what is
// negative.

template <int BYTES, bool PAIRS>
struct Grid : Wide<BYTES, 0, false, PAIRS> {
  static constexpr bool signs = true;
  static uint32_t d(const uint8_t* s) { return load<uint16_t>(s); }
};

inline __m512i points8(__m512i index, const uint8_t* grid) { return _mm512_i64gather_epi64(index, grid, 8); }
inline __m512i eight_bytes(uint64_t x) { return _mm512_cvtepu8_epi64(_mm_cvtsi64_si128(int64_t(x))); }
inline Scales scaled(__m256i x) { return {x, x}; }

// Points of a grid as small codes: of eight elements two bits each in two bytes, of four a nibble each in two bytes.
template <int POINTS, int SIZE>
struct Points {
  __m512i plane[2][POINTS / 64];
  __m512i values;  // 128 + the value of the code in the lowest bits of an index

  explicit Points(const uint8_t* grid) {
    constexpr int codes = SIZE == 8 ? 4 : 8, bits = SIZE == 8 ? 2 : 4;
    bool seen[256] = {};
    uint8_t code[256] = {}, table[64] = {}, bytes[2][POINTS] = {};
    for (int i = 0; i < POINTS * SIZE; i++) seen[grid[i]] = true;
    for (int value = 0, n = 0; value < 256 && n < codes; value++)
      if (seen[value]) {
        for (int i = n; i < 64; i += codes) table[i] = uint8_t(128 + value);
        code[value] = uint8_t(n++);
      }
    for (int i = 0; i < POINTS * SIZE; i++)
      bytes[i % SIZE * 2 / SIZE][i / SIZE] |= uint8_t(code[grid[i]] << (i % (SIZE / 2) * bits));
    __builtin_memcpy(plane, bytes, sizeof bytes);
    values = _mm512_loadu_si512(table);
  }

  // Of 64 indices, whose ninth bit is `high`.
  __m512i look(int p, __m512i index, __mmask64 high) const {
    const __m512i* t = plane[p];
    __mmask64 half = _mm512_movepi8_mask(index);
    __m512i x = _mm512_mask_mov_epi8(_mm512_permutex2var_epi8(t[0], index, t[1]), half,
                                     _mm512_permutex2var_epi8(t[2], index, t[3]));
    if constexpr (POINTS == 256) return x;
    return _mm512_mask_mov_epi8(x, high, _mm512_mask_mov_epi8(_mm512_permutex2var_epi8(t[4], index, t[5]), half,
                                                              _mm512_permutex2var_epi8(t[6], index, t[7])));
  }
};

inline __m512i with_parity(__m512i seven) {
  __m512i odd = _mm512_slli_epi16(_mm512_and_si512(_mm512_popcnt_epi8(seven), byte64(1)), 7);
  return _mm512_or_si512(seven, odd);
}

// 16 sign bits of each group of 16 elements in their order, as masks of four registers whose lanes are groups `from`.
struct Masks {
  uint64_t of[4];
  Masks(__m256i signs, __m256i from) { _mm256_storeu_si256((__m256i*)of, _mm256_permutexvar_epi16(from, signs)); }
};
inline __m256i seven_bits(__m512i x) {  // four times seven bits in each 64 -> four bytes with parity
  const __m512i from = _mm512_set1_epi64(0x150e0700);
  return _mm512_cvtepi64_epi32(with_parity(_mm512_and_si512(_mm512_multishift_epi64_epi8(from, x), byte64(127))));
}

// Types of eight elements a point: 32 indices -> four registers.
template <class P>
inline void points_of_8(const P& points, __m256i index, uint32_t high, __m512i* q) {
  const __m512i x = _mm512_castsi256_si512(index);
  const __m512i a = points.look(0, x, high), b = points.look(1, x, high), eight = _mm512_set1_epi64(0x0e0c0a0806040200);
  const __m512i code = _mm512_inserti64x4(_mm512_unpacklo_epi8(a, b), _mm512_castsi512_si256(_mm512_unpackhi_epi8(a, b)), 1);
  const __m512i values = _mm512_xor_si512(points.values, byte64(128));
  __m512i y[4];
  for (int n = 0; n < 4; n++)
    y[n] = _mm512_permutexvar_epi8(_mm512_multishift_epi64_epi8(_mm512_add_epi8(eight, byte64(16 * n)), code), values);
  q[0] = _mm512_unpacklo_epi64(y[0], y[1]);
  q[1] = _mm512_unpacklo_epi64(y[2], y[3]);
  q[2] = _mm512_unpackhi_epi64(y[0], y[1]);
  q[3] = _mm512_unpackhi_epi64(y[2], y[3]);
}
inline Masks masks_of_8(__m256i signs) {
  return {signs, _mm256_setr_epi16(0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15)};
}

// Types of four elements a point: 64 indices -> four registers, of which register k has groups k, k + 4, k + 8, k + 12.
template <class P>
inline void points_of_4(const P& points, __m512i index, __mmask64 high, __m512i* q) {
  const __m512i a = points.look(0, index, high), b = points.look(1, index, high);
  const __m512i eight = _mm512_set1_epi64(0x1c1814100c080400), values = _mm512_xor_si512(points.values, byte64(128));
  for (int h = 0; h < 2; h++) {
    const __m512i code = h ? _mm512_unpackhi_epi8(a, b) : _mm512_unpacklo_epi8(a, b);
    const __m512i later = _mm512_add_epi8(eight, byte64(32));
    const __m512i x = _mm512_permutexvar_epi8(_mm512_multishift_epi64_epi8(eight, code), values);
    const __m512i y = _mm512_permutexvar_epi8(_mm512_multishift_epi64_epi8(later, code), values);
    q[2 * h] = _mm512_unpacklo_epi64(x, y);
    q[2 * h + 1] = _mm512_unpackhi_epi64(x, y);
  }
}
inline Masks masks_of_4(__m256i signs) {
  return {signs, _mm256_setr_epi16(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)};
}

struct IQ2_XXS : Grid<66, true> {
  static constexpr uint8_t group[16] = {0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15};
  static constexpr float factor = 0.125f;
  static Scales scales(const uint8_t* s) {
    uint64_t x = 0;
    for (int j = 0; j < 8; j++) x |= uint64_t(2 * (s[2 + 8 * j + 7] >> 4) + 1) << (8 * j);
    return scaled(eight_of(x));
  }
  static void codes(const uint8_t* s, __m512i* q) {
    static const Points<256, 8> points(grids.iq2_xxs);
    points_of_8(points, _mm512_cvtepi64_epi32(_mm512_loadu_si512(s + 2)), 0, q);
  }
  static uint64_t negative(const uint8_t* s, int k) {
    return masks_of_8(seven_bits(_mm512_srli_epi64(_mm512_loadu_si512(s + 2), 32))).of[k];
  }
};
struct IQ2_XS : Grid<74, false> {
  static constexpr uint8_t group[16] = {0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15};
  static constexpr float factor = 0.125f;
  static Scales scales(const uint8_t* s) {
    return scaled(sixteen_of(odd_nibbles(load<uint32_t>(s + 66)), odd_nibbles(load<uint32_t>(s + 70))));
  }
  static void codes(const uint8_t* s, __m512i* q) {
    static const Points<512, 8> points(grids.iq2_xs);
    const __m512i words = _mm512_loadu_si512(s + 2);
    points_of_8(points, _mm512_cvtepi16_epi8(words), _mm512_test_epi16_mask(words, _mm512_set1_epi16(256)), q);
  }
  static uint64_t negative(const uint8_t* s, int k) {
    const __m256i seven = _mm512_cvtepi16_epi8(_mm512_srli_epi16(_mm512_loadu_si512(s + 2), 9));
    return masks_of_8(_mm512_castsi512_si256(with_parity(_mm512_castsi256_si512(seven)))).of[k];
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
  static constexpr uint8_t group[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
  static constexpr float factor = 0.25f;
  static Scales scales(const uint8_t* s) {
    __m256i word = _mm256_loadu_si256((const __m256i*)(s + 66));
    __m256i x = _mm256_or_si256(_mm256_slli_epi32(_mm256_srli_epi32(word, 28), 1), _mm256_set1_epi32(1));
    return scaled(_mm256_castsi128_si256(_mm256_cvtepi32_epi16(x)));
  }
  static void codes(const uint8_t* s, __m512i* q) {
    static const Points<256, 4> points(grids.iq3_xxs);
    points_of_4(points, _mm512_loadu_si512(s + 2), 0, q);
  }
  static uint64_t negative(const uint8_t* s, int k) {
    return masks_of_4(seven_bits(_mm512_cvtepu32_epi64(_mm256_loadu_si256((const __m256i*)(s + 66))))).of[k];
  }
};
struct IQ3_S : Grid<110, true> {
  static constexpr uint8_t group[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
  static constexpr float factor = 1.0f;
  static Scales scales(const uint8_t* s) { return scaled(eight_of(odd_nibbles(load<uint32_t>(s + 106)))); }
  static void codes(const uint8_t* s, __m512i* q) {
    static const Points<512, 4> points(grids.iq3_s);
    points_of_4(points, _mm512_loadu_si512(s + 2), load<uint64_t>(s + 66), q);
  }
  static uint64_t negative(const uint8_t* s, int k) {
    return masks_of_4(_mm256_loadu_si256((const __m256i*)(s + 74))).of[k];
  }
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

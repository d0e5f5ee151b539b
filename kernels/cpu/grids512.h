// The grid types as registers: points looked up with byte permutations, and masks of what is negative.

template <int BYTES, bool PAIRS>
struct Grid : Wide<BYTES, 0, false, PAIRS> {
  static constexpr bool grid = true, signs = true;
  static constexpr int first_sign = 1;  // the bit of a sign byte that is the first element's
  static uint32_t d(const uint8_t* s) { return load<uint16_t>(s); }
};

inline __m512i points8(__m512i index, const uint8_t* grid) { return _mm512_i64gather_epi64(index, grid, 8); }
inline __m512i eight_bytes(uint64_t x) { return _mm512_cvtepu8_epi64(_mm_cvtsi64_si128(int64_t(x))); }
inline __m512i two_halves(__m256i a, __m256i b) { return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1); }
inline __m512i two_halves(const uint8_t* a, const uint8_t* b) {
  return two_halves(_mm256_loadu_si256((const __m256i*)a), _mm256_loadu_si256((const __m256i*)b));
}
inline Scales scaled(__m256i x) { return {x, x}; }

// What 64 points need: an index's low byte and its bits from the ninth, a byte of signs; of the groups, int32 scales of
// the 16 times 32 elements (`pairs`) or int16 scales of the 32 times 16.
struct Reading {
  __m512i index, signs, scale;
  __mmask64 high[3];
  __m512i moved;  // IQ1: added to each element's code
};

// Points of a grid as small codes in two bytes: of eight elements two bits each, of four three bits each.
template <int POINTS, int SIZE, int UNIT = 1>
struct Points {
  static constexpr int bits = SIZE == 8 ? 2 : 3, codes = 1 << bits, lanes = SIZE / 2;  // codes a byte
  __m512i plane[2][POINTS / 64];
  __m512i values;    // of the code in the lowest bits of an index, in a tile
  __m512i value[3];  // UNIT times the value of the code above none, one or two others

  explicit Points(const uint8_t* grid) {
    bool seen[256] = {};
    uint8_t code[256] = {}, number[codes] = {}, table[4][64], bytes[2][POINTS] = {};
    for (int i = 0; i < POINTS * SIZE; i++) seen[grid[i]] = true;
    for (int v = 0, n = 0; v < 256 && n < codes; v++)
      if (seen[v]) {
        number[n] = uint8_t(v);
        code[v] = uint8_t(n++);
      }
    for (int i = 0; i < 64; i++) {
      table[3][i] = uint8_t(zero_code + number[i % codes]);
      for (int k = 0; k < 3; k++) table[k][i] = uint8_t(UNIT * number[(i >> (k * bits)) % codes]);
    }
    for (int i = 0; i < POINTS * SIZE; i++)
      bytes[i % SIZE / lanes][i / SIZE] |= uint8_t(code[grid[i]] << (i % lanes * bits));
    __builtin_memcpy(plane, bytes, sizeof bytes);
    __builtin_memcpy(value, table, sizeof value);
    __builtin_memcpy(&values, table[3], sizeof values);
  }

  // Byte p of N times 64 points.
  template <int N>
  void look(int p, const Reading* r, __m512i* to) const {
    constexpr int pairs = POINTS / 128;
    __m512i held[N][4];  // of each index bit from the eighth, the half that waits for the other
#pragma GCC unroll 16
    for (int i = 0; i < pairs; i++) {
      __m512i low = plane[p][2 * i], up = plane[p][2 * i + 1];
      if (N > 1) asm("" : "+v"(low), "+v"(up));  // one load for all
#pragma GCC unroll 2
      for (int n = 0; n < N; n++) {
        __m512i x = _mm512_permutex2var_epi8(low, r[n].index, up);
        int bit = 0;
#pragma GCC unroll 4
        for (int k = i; k & 1; k >>= 1, bit++)
          x = _mm512_mask_mov_epi8(held[n][bit], bit ? r[n].high[bit - 1] : _mm512_movepi8_mask(r[n].index), x);
        (i + 1 < pairs ? held[n][bit] : to[n]) = x;
      }
    }
  }
  __m512i look(int p, __m512i index, __mmask64 high) const {
    Reading r;
    r.index = index;
    r.high[0] = high;
    __m512i x;
    look<1>(p, &r, &x);
    return x;
  }

  // Element n of 64 points, of which `byte` holds lanes n / lanes.
  __m512i element(int n, __m512i byte) const {
    const int k = n % lanes;
    return _mm512_permutexvar_epi8(k < 3 ? byte : _mm512_srli_epi16(byte, 2), value[k < 3 ? k : 2]);
  }
};

inline __m512i with_parity(__m512i seven) {
  __m512i odd = _mm512_slli_epi16(_mm512_and_si512(_mm512_popcnt_epi8(seven), byte64(1)), 7);
  return _mm512_or_si512(seven, odd);
}
// Seven signs above a bit of no meaning -> their parity, the eighth sign, in its place.
inline __m512i parity_below(__m512i x) {
  const __m512i seven = _mm512_and_si512(x, byte64(254));
  return _mm512_or_si512(seven, _mm512_and_si512(_mm512_popcnt_epi8(seven), byte64(1)));
}
inline __m512i odd_numbers(__m512i x) {  // 2 n + 1 of the four upper bits n of 32
  return _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi32(x, 27), _mm512_set1_epi32(30)), _mm512_set1_epi32(1));
}
inline uint64_t joined(uint64_t low, uint64_t high) { return low | high << 32; }

struct EvenBytes {
  alignas(64) uint8_t of[64] = {};
  constexpr EvenBytes() {
    for (int i = 0; i < 64; i++) of[i] = uint8_t(2 * i);
  }
};
constexpr EvenBytes even_bytes;

// Of eight elements a point, 64 are two blocks, a and b; of four, 64 are a block.
struct IQ2_XXS : Grid<66, true> {
  static constexpr float factor = 0.125f;
  static const auto& points() {
    static const Points<256, 8> all(grids.iq2_xxs);
    return all;
  }
  static void read(const uint8_t* a, const uint8_t* b, Reading& r) {
    const __m512i x = loaded(a + 2), y = loaded(b + 2);
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    r.index = _mm512_permutex2var_epi32(x, even, y);
    const __m512i words = _mm512_permutex2var_epi32(x, _mm512_add_epi32(even, _mm512_set1_epi32(1)), y);
    r.signs = parity_below(_mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x342d261f140d063f), words));
    r.scale = odd_numbers(words);
  }
};
struct IQ2_XS : Grid<74, false> {
  static constexpr float factor = 0.125f;
  static const auto& points() {
    static const Points<512, 8> all(grids.iq2_xs);
    return all;
  }
  static __m256i scales16(const uint8_t* s) {
    return sixteen_of(odd_nibbles(load<uint32_t>(s + 66)), odd_nibbles(load<uint32_t>(s + 70)));
  }
  static void read(const uint8_t* a, const uint8_t* b, Reading& r) {
    const __m512i x = loaded(a + 2), y = loaded(b + 2);
    const __m512i even = _mm512_load_si512(even_bytes.of);
    const __m512i up = _mm512_permutex2var_epi8(x, _mm512_add_epi8(even, byte64(1)), y);
    r.index = _mm512_permutex2var_epi8(x, even, y);
    r.high[0] = _mm512_test_epi8_mask(up, byte64(1));
    r.signs = parity_below(up);
    r.scale = two_halves(scales16(a), scales16(b));
  }
};
struct IQ2_S : Grid<82, false> {
  static constexpr float factor = 0.125f;
  static constexpr int first_sign = 0;
  static const auto& points() {
    static const Points<1024, 8> all(grids.iq2_s);
    return all;
  }
  static Scales scales(const uint8_t* s) {
    return scaled(sixteen_of(odd_nibbles(load<uint32_t>(s + 74)), odd_nibbles(load<uint32_t>(s + 78))));
  }
  static void read(const uint8_t* a, const uint8_t* b, Reading& r) {
    const uint64_t x = load<uint64_t>(a + 66), y = load<uint64_t>(b + 66), bits = 0x5555555555555555;
    r.index = two_halves(a + 2, b + 2);
    r.signs = two_halves(a + 34, b + 34);
    r.high[0] = joined(_pext_u64(x, bits), _pext_u64(y, bits));
    r.high[1] = joined(_pext_u64(x, ~bits), _pext_u64(y, ~bits));
    r.scale = two_halves(scales(a).scale, scales(b).scale);
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
  static constexpr int point_size = 4;
  static constexpr float factor = 0.25f;
  static const auto& points() {
    static const Points<256, 4> all(grids.iq3_xxs);
    return all;
  }
  static void read(const uint8_t* s, Reading& r) {
    const __m512i words = _mm512_cvtepu32_epi64(_mm256_loadu_si256((const __m256i*)(s + 66)));
    r.index = _mm512_loadu_si512(s + 2);
    r.signs = parity_below(_mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x14140d0d06063f3f), words));
    r.scale = odd_numbers(_mm512_shuffle_epi32(words, _MM_PERM_CCAA));
  }
};
struct IQ3_S : Grid<110, true> {
  static constexpr int point_size = 4;
  static constexpr float factor = 1.0f;
  static constexpr int first_sign = 0;
  static const auto& points() {
    static const Points<512, 4> all(grids.iq3_s);
    return all;
  }
  static void read(const uint8_t* s, Reading& r) {
    const __m512i twice_each = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)(s + 74)));
    r.index = _mm512_loadu_si512(s + 2);
    r.high[0] = load<uint64_t>(s + 66);
    r.signs = _mm512_or_si512(twice_each, _mm512_slli_epi16(twice_each, 8));
    r.scale = _mm512_shuffle_epi32(eight_bytes(odd_nibbles(load<uint32_t>(s + 106))), _MM_PERM_CCAA);
  }
};

// IQ1: points are -1, 0, 1 (stored + 1), moved by an eighth; codes count eighths, 9 + 8 (g - 1) +- 1.
// The codes of 32 points: the low bytes of their indices, words with bits 8 to 10 of them, and which are moved down.
inline void eighths(const uint8_t* low, __m512i high, uint32_t down, __m512i* q) {
  alignas(64) uint16_t index[32];
  const __m512i bytes = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)low));
  _mm512_store_si512(index, _mm512_or_si512(bytes, _mm512_and_si512(high, _mm512_set1_epi16(0x700))));
  for (int k = 0; k < 4; k++) {
    const __m512i at = _mm512_cvtepu16_epi64(_mm_load_si128((const __m128i*)(index + 8 * k)));
    const __m512i shift = _mm512_mask_mov_epi64(byte64(2), __mmask8(down >> (8 * k)), _mm512_setzero_si512());
    q[k] = _mm512_add_epi8(_mm512_slli_epi64(points8(at, grids.iq1), 3), shift);
  }
}
inline const auto& iq1_points() {
  static const Points<2048, 8, 8> all(grids.iq1);
  return all;
}
struct Fourths {
  alignas(64) uint16_t of[32] = {};
  constexpr Fourths() {
    for (int i = 0; i < 32; i++) of[i] = uint16_t(i / 4);
  }
};
constexpr Fourths fourths;

struct IQ1_S : Wide<50, 9, false, true> {
  static constexpr bool grid = true;
  static constexpr float factor = 0.125f;
  static const auto& points() { return iq1_points(); }
  static void read(const uint8_t* a, const uint8_t* b, Reading& r) {
    const __m256i up = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)(a + 34))),
                                               _mm_loadu_si128((const __m128i*)(b + 34)), 1);
    const __m512i words = _mm512_cvtepi16_epi32(up);
    r.index = two_halves(a + 2, b + 2);
    const uint64_t x0 = load<uint64_t>(a + 34), x1 = load<uint64_t>(a + 42);
    const uint64_t y0 = load<uint64_t>(b + 34), y1 = load<uint64_t>(b + 42);
    for (int n = 0; n < 3; n++) {
      const uint64_t bits = uint64_t(0x0249024902490249) << n;
      r.high[n] = joined(_pext_u64(x0, bits) | _pext_u64(x1, bits) << 16,
                         _pext_u64(y0, bits) | _pext_u64(y1, bits) << 16);
    }
    r.moved = _mm512_mask_mov_epi32(_mm512_set1_epi32(0x02020202), _mm512_movepi32_mask(words), _mm512_setzero_si512());
    const __m512i three = _mm512_and_si512(_mm512_srli_epi32(words, 11), _mm512_set1_epi32(14));
    r.scale = _mm512_or_si512(three, _mm512_set1_epi32(1));
  }
  static uint32_t d(const uint8_t* s) { return load<uint16_t>(s); }
  static Scales scales(const uint8_t* s) {
    __m128i high = _mm_srli_epi16(_mm_loadu_si128((const __m128i*)(s + 34)), 12);
    __m128i x = _mm_add_epi16(_mm_slli_epi16(_mm_and_si128(high, _mm_set1_epi16(7)), 1), _mm_set1_epi16(1));
    return scaled(_mm256_castsi128_si256(x));
  }
  static void codes(const uint8_t* s, __m512i* q) {
    const __m512i words = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i*)(s + 34)));
    const __m512i four_times = _mm512_permutexvar_epi16(_mm512_load_si512(fourths.of), words);
    const __m512i high = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x0900060003000000), four_times);
    eighths(s + 2, high, _mm512_movepi16_mask(four_times), q);
  }
};
struct IQ1_M : Wide<56, 9, false, false> {
  static constexpr bool grid = true;
  static constexpr float factor = 0.125f;
  static const auto& points() { return iq1_points(); }
  static void read(const uint8_t* a, const uint8_t* b, Reading& r) {
    const uint64_t x0 = load<uint64_t>(a + 32), x1 = load<uint64_t>(a + 40);
    const uint64_t y0 = load<uint64_t>(b + 32), y1 = load<uint64_t>(b + 40);
    auto bit = [&](int n) {
      const uint64_t bits = uint64_t(0x1111111111111111) << n;
      return joined(_pext_u64(x0, bits) | _pext_u64(x1, bits) << 16, _pext_u64(y0, bits) | _pext_u64(y1, bits) << 16);
    };
    r.index = two_halves(a, b);
    for (int n = 0; n < 3; n++) r.high[n] = bit(n);
    r.moved = _mm512_mask_mov_epi8(byte64(2), bit(3), _mm512_setzero_si512());
    r.scale = two_halves(scales(a).scale, scales(b).scale);
  }
  static uint32_t d(const uint8_t* s) { return uint32_t(_pext_u64(load<uint64_t>(s + 48), 0xf000f000f000f000)); }
  static Scales scales(const uint8_t* s) {
    uint64_t packed = _pext_u64(load<uint64_t>(s + 48), 0x0fff0fff0fff0fff), three = 0x0707070707070707;
    uint64_t one = 0x0101010101010101;
    return scaled(sixteen_of(2 * _pdep_u64(packed, three) + one, 2 * _pdep_u64(packed >> 24, three) + one));
  }
  static void codes(const uint8_t* s, __m512i* q) {
    const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)(s + 32)));
    const __m512i high = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x2400200004000000), bytes);
    eighths(s, high, _mm512_test_epi16_mask(high, _mm512_set1_epi16(0x800)), q);
  }
};

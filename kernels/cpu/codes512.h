// Each block layout as registers: 256 unsigned codes in four registers whose 16-byte lanes each hold one group of 16.

template <int BYTES, int BIAS, bool LOWS, bool PAIRS>
struct Wide {
  static constexpr int block = 256, bytes = BYTES, bias = BIAS;
  static constexpr bool wide = true, lows = LOWS, pairs = PAIRS;  // pairs: 32 elements share a scale
  static constexpr float factor = 1.0f;                          // of d
  static constexpr bool large = false;                           // codes above 128
  static constexpr bool unscaled = false;                        // every scale is 1
  static constexpr bool signs = false, grid = false;             // of what is negative; points in place of codes
  static constexpr int point_size = 8;
  static constexpr uint8_t group[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};  // of each lane
};

inline __m512i byte64(int value) { return _mm512_set1_epi8(char(value)); }
inline __m512i twice(const uint8_t* p) { return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)p)); }
inline __m512i halves16(int low, int high) {
  return _mm512_inserti64x4(_mm512_set1_epi16(short(low)), _mm256_set1_epi16(short(high)), 1);
}
// A load that is used more than once: a compiler would rather load anew for each use, and unaligned loads are dear.
inline __m512i loaded(const uint8_t* p) {
  __m512i x = _mm512_loadu_si512(p);
  asm("" : "+v"(x));
  return x;
}
inline __m512i table16(const uint8_t* table) { return _mm512_broadcast_i32x4(_mm_load_si128((const __m128i*)table)); }
inline __m512i lows4(__m512i q) { return _mm512_and_si512(q, byte64(15)); }
inline __m512i highs4(__m512i q) { return _mm512_gf2p8affine_epi64_epi8(q, _mm512_set1_epi64(0x1020408000000000), 0); }
inline __m256i eight_of(uint64_t x) { return _mm256_castsi128_si256(_mm_cvtepi8_epi16(_mm_cvtsi64_si128(int64_t(x)))); }
inline uint64_t nibbles(uint32_t x) { return _pdep_u64(x, 0x0f0f0f0f0f0f0f0f); }
inline uint64_t odd_nibbles(uint32_t x) { return nibbles(x) * 2 + 0x0101010101010101; }  // 2 n + 1

struct Q2_K : Wide<84, 0, true, false> {
  static constexpr uint8_t group[16] = {0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15};
  static Scales scales(const uint8_t* s) { return two_nibbles(s); }
  static uint32_t d(const uint8_t* s) { return load<uint32_t>(s + 80); }
  static void codes(const uint8_t* s, __m512i* q) {
    __m512i x = loaded(s + 16);
    for (int k = 0; k < 4; k++) q[k] = _mm512_and_si512(_mm512_srli_epi16(x, 2 * k), byte64(3));
  }
};
struct Q3_K : Wide<110, 4, false, false> {
  static constexpr uint8_t group[16] = {0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15};
  static Scales scales(const uint8_t* s) { return four_and_two_bits(s + 96); }
  static uint32_t d(const uint8_t* s) { return load<uint16_t>(s + 108); }
  static void codes(const uint8_t* s, __m512i* q) {
    __m512i x = loaded(s + 32), h = _mm512_srlv_epi16(twice(s), halves16(0, 4));
    for (int k = 0; k < 4; k++) {
      __m512i up = k < 2 ? _mm512_slli_epi16(h, 2 - k) : _mm512_srli_epi16(h, k - 2);
      q[k] = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(x, 2 * k), byte64(3)), _mm512_and_si512(up, byte64(4)));
    }
  }
};
struct Q4_K : Wide<144, 0, true, true> {
  static constexpr uint8_t group[16] = {0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15};
  static Scales scales(const uint8_t* s) { return six_bits(s + 4); }
  static uint32_t d(const uint8_t* s) { return load<uint32_t>(s); }
  static void codes(const uint8_t* s, __m512i* q) {
    for (int h = 0; h < 2; h++) {
      __m512i x = loaded(s + 16 + 64 * h);
      q[2 * h] = lows4(x);
      q[2 * h + 1] = highs4(x);
    }
  }
};
struct Q5_K : Wide<176, 0, true, true> {
  static constexpr uint8_t group[16] = {0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15};
  static Scales scales(const uint8_t* s) { return six_bits(s + 4); }
  static uint32_t d(const uint8_t* s) { return load<uint32_t>(s); }
  static void codes(const uint8_t* s, __m512i* q) {
    __m512i x = loaded(s + 48), y = loaded(s + 112), m = byte64(16);
    __m512i h = _mm512_srlv_epi16(twice(s + 16), halves16(0, 2));
    q[0] = _mm512_or_si512(lows4(x), _mm512_and_si512(_mm512_slli_epi16(h, 4), m));
    q[1] = _mm512_or_si512(highs4(x), _mm512_and_si512(_mm512_slli_epi16(h, 3), m));
    q[2] = _mm512_or_si512(lows4(y), _mm512_and_si512(h, m));
    q[3] = _mm512_or_si512(highs4(y), _mm512_and_si512(_mm512_srli_epi16(h, 1), m));
  }
};
struct Q6_K : Wide<210, 32, false, false> {
  static Scales scales(const uint8_t* s) { return signed_bytes(s + 192); }
  static uint32_t d(const uint8_t* s) { return load<uint16_t>(s + 208); }
  static void codes(const uint8_t* s, __m512i* q) {
    const __m512i m = byte64(0x30), left = halves16(4, 2), right = halves16(0, 2);
    for (int h = 0; h < 2; h++) {
      __m512i x = loaded(s + 64 * h), up = twice(s + 128 + 32 * h);
      q[2 * h] = _mm512_or_si512(lows4(x), _mm512_and_si512(_mm512_sllv_epi16(up, left), m));
      q[2 * h + 1] = _mm512_or_si512(highs4(x), _mm512_and_si512(_mm512_srlv_epi16(up, right), m));
    }
  }
};
struct IQ4_XS : Wide<136, 128, false, true> {
  static constexpr bool large = true;
  static constexpr uint8_t group[16] = {0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15};
  static Scales scales(const uint8_t* s) {
    uint64_t high = _pdep_u64(load<uint16_t>(s + 2), 0x3030303030303030);
    __m256i x = eight_of(nibbles(load<uint32_t>(s + 4)) | high);
    return {_mm256_sub_epi16(x, _mm256_set1_epi16(32)), x};
  }
  static uint32_t d(const uint8_t* s) { return load<uint16_t>(s); }
  static void codes(const uint8_t* s, __m512i* q) {
    __m512i table = table16(iq4_values);
    for (int h = 0; h < 2; h++) {
      __m512i x = loaded(s + 8 + 64 * h);
      q[2 * h] = _mm512_shuffle_epi8(table, lows4(x));
      q[2 * h + 1] = _mm512_shuffle_epi8(table, highs4(x));
    }
  }
};
inline Scales ones() { return {_mm256_set1_epi16(1), _mm256_set1_epi16(1)}; }
struct TQ2_0 : Wide<66, 1, false, true> {
  static constexpr bool unscaled = true;
  static constexpr uint8_t group[16] = {0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15};
  static Scales scales(const uint8_t*) { return ones(); }
  static uint32_t d(const uint8_t* s) { return load<uint16_t>(s + 64); }
  static void codes(const uint8_t* s, __m512i* q) {
    __m512i x = loaded(s);
    for (int k = 0; k < 4; k++) q[k] = _mm512_and_si512(_mm512_srli_epi16(x, 2 * k), byte64(3));
  }
};
struct TQ1_0 : Wide<54, 1, false, true> {
  static constexpr bool unscaled = true;
  static Scales scales(const uint8_t*) { return ones(); }
  static uint32_t d(const uint8_t* s) { return load<uint16_t>(s + 52); }
  static __m512i digit(__m512i x) {  // x * 3 >> 8
    __m512i one = byte64(1);
    return _mm512_add_epi8(_mm512_maskz_mov_epi8(_mm512_cmpge_epu8_mask(x, byte64(86)), one),
                           _mm512_maskz_mov_epi8(_mm512_cmpge_epu8_mask(x, byte64(171)), one));
  }
  static __m256i tripled(__m256i x) { return _mm256_add_epi8(_mm256_add_epi8(x, x), x); }
  static __m512i both(__m256i a, __m256i b) { return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1); }
  static void codes(const uint8_t* s, __m512i* q) {
    __m256i x[5], y[5], last = _mm256_castsi128_si256(_mm_cvtsi32_si128(int(load<uint32_t>(s + 48))));
    x[0] = _mm256_loadu_si256((const __m256i*)s);
    y[0] = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)(s + 32)));
    for (int n = 1; n < 5; n++) {
      x[n] = tripled(x[n - 1]);
      y[n] = tripled(y[n - 1]);
    }
    __m256i l1 = tripled(last), l2 = tripled(l1), l3 = tripled(l2);
    __m128i end = _mm_unpacklo_epi64(_mm_unpacklo_epi32(_mm256_castsi256_si128(last), _mm256_castsi256_si128(l1)),
                                     _mm_unpacklo_epi32(_mm256_castsi256_si128(l2), _mm256_castsi256_si128(l3)));
    q[0] = digit(both(x[0], x[1]));
    q[1] = digit(both(x[2], x[3]));
    q[2] = digit(both(x[4], _mm256_inserti128_si256(y[0], _mm256_castsi256_si128(y[1]), 1)));
    q[3] = digit(both(_mm256_inserti128_si256(y[2], _mm256_castsi256_si128(y[3]), 1),
                      _mm256_inserti128_si256(y[4], end, 1)));
  }
};

// Narrow types: eight blocks in four registers, the first halves of blocks 0 to 3, their second halves, then 4 to 7.
// `d` and `m`: words that `number` makes floats of, four words k those of blocks k and k + 4, twice.

// Byte numbers that bring 16 bytes AT of blocks 4 h to 4 h + 3 together, where `first`, `second` and `last` lie one
// after the other.
template <int BYTES, int AT>
struct Sixteens {
  alignas(64) uint8_t of[2][64] = {};
  constexpr Sixteens() {
    for (int h = 0; h < 2; h++)
      for (int i = 0; i < 64; i++) {
        const int byte = (4 * h + i / 16) * BYTES + AT + i % 16;
        of[h][i] = uint8_t(h == 0 ? byte : byte < 8 * BYTES - 64 ? byte - 64 : byte - (8 * BYTES - 64) + 64);
      }
  }
};
template <int BYTES, int AT>
constexpr Sixteens<BYTES, AT> at_sixteens;

// Word numbers of two bytes AT of blocks k and k + 4, twice, in four words k; `late` are those beyond 128 bytes.
template <int BYTES, int AT>
struct Heads {
  alignas(64) int16_t early[32] = {}, late[32] = {};
  __mmask32 is_late = 0;
  constexpr Heads() {
    for (int i = 0; i < 16; i++) {
      const int byte = (4 * (i % 2) + i / 4) * BYTES + AT;
      early[i] = int16_t(byte / 2);
      late[i] = int16_t((byte - (8 * BYTES - 64)) / 2);
      is_late |= byte < 128 ? 0 : __mmask32(1) << i;
    }
  }
};
template <int BYTES, int AT>
constexpr Heads<BYTES, AT> at_heads;

template <int BYTES, int BIAS, int MOST, bool LOWS = false>
struct Narrow {
  static constexpr int block = 32, bytes = BYTES, bias = BIAS, most = MOST;  // the largest code
  static constexpr bool wide = false, grid = false, lows = LOWS, pairs = true;
  static constexpr uint8_t group[16] = {0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15};

  static __m512i first(const uint8_t* s) { return _mm512_loadu_si512(s); }
  static __m512i second(const uint8_t* s) { return _mm512_loadu_si512(s + 64); }
  static __m512i last(const uint8_t* s) { return _mm512_loadu_si512(s + 8 * BYTES - 64); }

  template <int AT>
  static __m512i sixteens(const uint8_t* s, int h) {
    const __m512i from = _mm512_load_si512(at_sixteens<BYTES, AT>.of[h]);
    return h ? _mm512_permutex2var_epi8(second(s), from, last(s)) : _mm512_permutex2var_epi8(first(s), from, second(s));
  }
  template <int AT>
  static __m256i heads(const uint8_t* s) {
    constexpr const Heads<BYTES, AT>& at = at_heads<BYTES, AT>;
    __m512i x = _mm512_permutex2var_epi16(first(s), _mm512_load_si512(at.early), second(s));
    if (at.is_late) x = _mm512_mask_permutexvar_epi16(x, at.is_late, _mm512_load_si512(at.late), last(s));
    return _mm512_castsi512_si256(x);
  }
  static __m256i d(const uint8_t* s) { return heads<0>(s); }
  static __m256i m(const uint8_t* s) { return heads<2>(s); }
  static __m512 number(__m256i x) { return _mm512_cvtph_ps(x); }

  template <int AT>
  static void nibbles_of(const uint8_t* s, __m512i* q) {
    for (int h = 0; h < 2; h++) {
      __m512i x = sixteens<AT>(s, h);
      q[2 * h] = lows4(x);
      q[2 * h + 1] = highs4(x);
    }
  }
  template <int AT>
  static void fifth(const uint8_t* s, __m512i* q) {
    const __m512i bit = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    for (int k = 0; k < 4; k++) {
      const __m512i bits = _mm512_shuffle_epi32(sixteens<AT>(s, k / 2), _MM_PERM_AAAA);
      const __mmask64 up = _mm512_bitshuffle_epi64_mask(bits, k % 2 ? _mm512_add_epi8(bit, byte64(16)) : bit);
      q[k] = _mm512_mask_add_epi8(q[k], up, q[k], byte64(16));
    }
  }
  // A table of 64 is four times the same 16: an index's upper bits do not count.
  template <int AT>
  static void values_of(const uint8_t* s, const uint8_t* values, __m512i* q) {
    const __m512i table = table16(values);
    for (int h = 0; h < 2; h++) {
      __m512i x = sixteens<AT>(s, h);
      q[2 * h] = _mm512_permutexvar_epi8(x, table);
      q[2 * h + 1] = _mm512_permutexvar_epi8(_mm512_srli_epi16(x, 4), table);
    }
  }
};

struct Q4_0 : Narrow<18, 8, 15> {
  static void codes(const uint8_t* s, __m512i* q) { nibbles_of<2>(s, q); }
};
struct Q4_1 : Narrow<20, 0, 15, true> {
  static void codes(const uint8_t* s, __m512i* q) { nibbles_of<4>(s, q); }
};
struct Q5_0 : Narrow<22, 16, 31> {
  static void codes(const uint8_t* s, __m512i* q) {
    nibbles_of<6>(s, q);
    fifth<2>(s, q);
  }
};
struct Q5_1 : Narrow<24, 0, 31, true> {
  static void codes(const uint8_t* s, __m512i* q) {
    nibbles_of<8>(s, q);
    fifth<4>(s, q);
  }
};
struct IQ4_NL : Narrow<18, 128, 255> {
  static void codes(const uint8_t* s, __m512i* q) { values_of<2>(s, iq4_values, q); }
};
struct Q8_0 : Narrow<34, 128, 255> {
  static void codes(const uint8_t* s, __m512i* q) {
    auto half = [](const uint8_t* p) { return _mm256_loadu2_m128i((const __m128i*)(p + 34), (const __m128i*)p); };
    for (int k = 0; k < 4; k++) {
      const uint8_t* p = s + 2 + 136 * (k / 2) + 16 * (k % 2);
      q[k] = _mm512_xor_si512(_mm512_inserti64x4(_mm512_castsi256_si512(half(p)), half(p + 68), 1), byte64(128));
    }
  }
  static __m256i d(const uint8_t* s) {
    const __m256i from = _mm256_set_epi64x(0x0033003300330033, 0x0022002200220022, 0x0011001100110011, 0);
    auto four = [from](const uint8_t* p) {
      const __m512i x = _mm512_loadu_si512(p), y = _mm512_loadu_si512(p + 64);
      return _mm512_castsi512_si256(_mm512_permutex2var_epi16(x, _mm512_castsi256_si512(from), y));
    };
    return _mm256_blend_epi16(four(s), four(s + 136), 0xaa);
  }
};
struct MXFP4 : Narrow<17, 12, 24> {
  static void codes(const uint8_t* s, __m512i* q) { values_of<1>(s, fp4_values, q); }
  static __m256i d(const uint8_t* s) {
    const __m512i at = _mm512_castsi256_si512(_mm256_set_epi64x(0x0077003300770033, 0x0066002200660022,
                                                                0x0055001100550011, 0x0044000000440000));
    return _mm512_castsi512_si256(_mm512_maskz_permutex2var_epi8(0x5555555555555555, first(s), at, second(s)));
  }
  static __m512 number(__m256i exponents) {
    __m512i x = _mm512_cvtepu16_epi32(exponents);
    __m512i usual = _mm512_slli_epi32(_mm512_sub_epi32(x, _mm512_set1_epi32(1)), 23);
    __mmask16 tiny = _mm512_cmplt_epi32_mask(x, _mm512_set1_epi32(2));
    return _mm512_castsi512_ps(_mm512_mask_sllv_epi32(usual, tiny, _mm512_set1_epi32(0x00200000), x));
  }
};

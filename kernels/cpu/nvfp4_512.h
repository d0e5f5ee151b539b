// NVFP4, where 16 elements share a scale and 64 a block: sums of 16 become floats before they are added.

struct NVFP4 {
  static constexpr int block = 64, bytes = 36, bias = 12;
  static constexpr bool wide = false, grid = false, lows = false, pairs = false;

  // 256 codes: the first eight of groups 0 to 7, their last eight, then those of groups 8 to 15.
  static void codes(const uint8_t* s, __m512i* q) {
    const __m512i table = table16(fp4_values);
    for (int h = 0; h < 2; h++) {
      const __m256i a = _mm256_loadu_si256((const __m256i*)(s + 72 * h + 4));
      const __m512i x = _mm512_inserti64x4(_mm512_castsi256_si512(a), *(const __m256i_u*)(s + 72 * h + 40), 1);
      q[2 * h] = _mm512_permutexvar_epi8(x, table);
      q[2 * h + 1] = _mm512_permutexvar_epi8(_mm512_srli_epi16(x, 4), table);
    }
  }
  // Of 256 elements as words: in four words k the scales of groups 2 k, 2 k + 1, 2 k + 8 and 2 k + 9.
  static __m256i d(const uint8_t* s) {
    const __m512i at = _mm512_castsi256_si512(_mm256_set_epi64x(0x006f006e00270026, 0x006d006c00250024,
                                                                0x004b004a00030002, 0x0049004800010000));
    const __m512i first = _mm512_loadu_si512(s), second = _mm512_loadu_si512(s + 64);
    return _mm512_castsi512_si256(_mm512_maskz_permutex2var_epi8(0x55555555, first, at, second));
  }
  static __m512 number(__m256i x) {
    const __m256i seven = _mm256_set1_epi16(127);
    const __m256i half = _mm256_maskz_slli_epi16(_mm256_cmpneq_epi16_mask(x, seven), _mm256_and_si256(x, seven), 7);
    return _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(128.0f));
  }
};

// Two chunks of 256 activations, in the order of the codes.
struct alignas(64) Meeting16 {
  int8_t q[2][256];
  int32_t moved[2][16];  // -bias times the sums of 16, in the order of the scales
  float d[16];           // as those of `Halves`
};

template <class F>
inline void make_pair(const Activation& a, const Activation& b, int, int, Meeting16& to) {
  for (int half = 0; half < 2; half++) {
    const Activation& from = half ? b : a;
    for (int g = 0; g < 16; g++) {
      for (int last = 0; last < 2; last++)
        __builtin_memcpy(to.q[half] + 128 * (g / 8) + 64 * last + 8 * (g % 8), from.q + 16 * g + 8 * last, 8);
      to.moved[half][g % 8 / 2 * 4 + g / 8 * 2 + g % 2] = -F::bias * from.sum16[g];
    }
    for (int j = 0; j < 8; j++) to.d[4 * (j % 4) + 2 * half + j / 4] = from.d[place(j)];
  }
}

// What is known of four chunks of 256 weights before floats are made of it. What lies behind a row's end meets zeros,
// and its scales are numbers whatever they are.
template <class F>
struct SumsOf16 {
  __m512i sum[4];
  __m256i d[4];

  SumsOf16(None, const uint8_t* const* s, const Meeting16& one, const Meeting16& other) {
    for (int k = 0; k < 4; k++) {
      const int8_t* y = (k < 2 ? one : other).q[k % 2];
      __m512i q[4], dot[2];
      F::codes(s[k], q);
      for (int i = 0; i < 2; i++) {
        const __m512i x = _mm512_dpbusd_epi32(_mm512_setzero_si512(), q[2 * i], _mm512_load_si512(y + 128 * i));
        dot[i] = _mm512_dpbusd_epi32(x, q[2 * i + 1], _mm512_load_si512(y + 128 * i + 64));
      }
      sum[k] = _mm512_madd_epi16(_mm512_packs_epi32(dot[0], dot[1]), _mm512_set1_epi16(1));  // 8 products fit
      d[k] = F::d(s[k]);
    }
  }
  __m512 quads_of(int k, const Meeting16& y) const {
    __m512 v[2];
    for (int half = 0; half < 2; half++) {
      const __m512i right = _mm512_add_epi32(sum[2 * k + half], _mm512_load_si512(y.moved[half]));
      v[half] = _mm512_mul_ps(F::number(d[2 * k + half]), _mm512_cvtepi32_ps(right));
    }
    return quads(_mm512_add_ps(_mm512_shuffle_ps(v[0], v[1], 0x88), _mm512_shuffle_ps(v[0], v[1], 0xdd)), y.d);
  }
  __m128 values(const Meeting16& one, const Meeting16& other) const {
    return quads_added(quads_of(0, one), quads_of(1, other));
  }
};

// As `pack_bytes`: of a tile whose rows have so many elements left, 64 at a time.
inline void pack_sixteens(NVFP4, const uint8_t* s, size_t row_bytes, int left, Tile& tile) {
  const __m512i table = _mm512_add_epi8(table16(fp4_values), byte64(zero_code - NVFP4::bias));
  for (int m = 0; m < 4; m++, s += NVFP4::bytes) {
    if (64 * m >= left) {
      for (int k = 0; k < 2; k++) tile.d[m + 4 * k] = tile.m[m + 4 * k] = _mm512_setzero_ps();
      continue;
    }
    __m512i head[4], x[8];
    columns4((const char*)s, row_bytes, head);
    columns4((const char*)s + 4, row_bytes, x);
    columns4((const char*)s + 20, row_bytes, x + 4);
    auto scale = [&](int i) { return NVFP4::number(_mm512_cvtepi32_epi16(byte_of(head[0], i))); };
    for (int half = 0; half < 2; half++) {
      tile.d[m + 4 * half] = scale(2 * half);
      tile.m[m + 4 * half] = scale(2 * half + 1);
    }
    for (int i = 0; i < 8; i++) {  // eight bytes are eight low and eight high codes
      __m512i* q = tile.q + 16 * m + i / 2 * 4 + i % 2;
      q[0] = _mm512_permutexvar_epi8(x[i], table);
      q[2] = _mm512_permutexvar_epi8(_mm512_srli_epi16(x[i], 4), table);
    }
  }
}

// One token and types of blocks of 32, or of points of a grid: the sums of four times 256 weights at a time, which meet
// two pairs of 256 activations in an order of their own.

inline __m128i halves_added(__m256i x) {
  return _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}

inline __m512i lanes_of_4(const __m512i* x) {  // in each lane its sums of the four
  __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(x[0], x[1]), _mm512_unpackhi_epi32(x[0], x[1]));
  __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(x[2], x[3]), _mm512_unpackhi_epi32(x[2], x[3]));
  return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
}
inline __m128i lanes_added(__m512i x) {
  return halves_added(_mm256_add_epi32(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1)));
}
inline __m128i sums_of_4(const __m512i* x) { return lanes_added(lanes_of_4(x)); }
inline __m128i sums_of_4(const __m128i* x) {
  __m128i ab = _mm_add_epi32(_mm_unpacklo_epi32(x[0], x[1]), _mm_unpackhi_epi32(x[0], x[1]));
  __m128i cd = _mm_add_epi32(_mm_unpacklo_epi32(x[2], x[3]), _mm_unpackhi_epi32(x[2], x[3]));
  return _mm_add_epi32(_mm_unpacklo_epi64(ab, cd), _mm_unpackhi_epi64(ab, cd));
}

struct None {};
template <class F>
inline auto points_of() {
  if constexpr (!F::wide) return None();
  else return F::points();
}

// Two chunks of 256 activations, and what else the weights that meet them need: blocks k and k + 4 of the first, then
// of the second in lane k.
struct alignas(64) Halves {
  int8_t q[2][256];   // in the order of `Narrow::group`
  int32_t moved[16];  // -bias times the sums
  float d[16], sums[16];
  __mmask16 inside;  // which blocks are in the row: behind a row's end lies the next
};

template <class F>
inline void make_pair(const Activation& a, const Activation& b, int blocks_a, int blocks_b, Halves& to) {
  to.inside = 0;
  for (int half = 0; half < 2; half++) {
    const Activation& from = half ? b : a;
    for (int i = 0; i < 16; i++) __builtin_memcpy(to.q[half] + 16 * i, from.q + 16 * F::group[i], 16);
    for (int j = 0; j < 8; j++) {
      const int i = 4 * (j % 4) + 2 * half + j / 4;
      to.moved[i] = -F::bias * from.sum32[j];
      to.sums[i] = float(from.sum32[j]);
      to.d[i] = from.d[place(j)];
      to.inside |= __mmask16(j < (half ? blocks_b : blocks_a)) << i;
    }
  }
}

// Of each 128 bits the sum, for four registers of sums of eight products of an int8 and a code of at most MOST.
template <int MOST>
inline __m512i lane_sums(const __m512i* x) {
  const __m512i one = _mm512_set1_epi16(1);
  auto paired = [one](__m512i a, __m512i b) { return _mm512_madd_epi16(_mm512_packs_epi32(a, b), one); };
  if constexpr (MOST < 16) return paired(paired(x[0], x[1]), paired(x[2], x[3]));  // 16 products fit in an int16
  if constexpr (MOST < 32) {                                                       // 8 products fit
    const __m512 a = _mm512_castsi512_ps(paired(x[0], x[1])), b = _mm512_castsi512_ps(paired(x[2], x[3]));
    const __m512i even = _mm512_castps_si512(_mm512_shuffle_ps(a, b, 0x88));
    return _mm512_add_epi32(even, _mm512_castps_si512(_mm512_shuffle_ps(a, b, 0xdd)));
  }
  return lanes_of_4(x);
}

// Of v of blocks k and k + 4 of a chunk, then of another, in lane k. Lane 1: q[0] and q[2] of either, lane 3: q[1] and
// q[3].
inline __m512 quads(__m512 v, const float* d) {
  const __m512 dy = _mm512_load_ps(d), even = _mm512_mul_ps(dy, v);
  return _mm512_fmadd_ps(dy, v, _mm512_shuffle_f32x4(even, even, 0xa0));
}
inline __m128 quads_added(__m512 x, __m512 z) {
  const __m512 sums = _mm512_add_ps(_mm512_shuffle_ps(x, z, 0x88), _mm512_shuffle_ps(x, z, 0xdd));  // q0+q2, q1+q3
  return _mm_add_ps(_mm512_extractf32x4_ps(sums, 1), _mm512_extractf32x4_ps(sums, 3));
}

// What is known of four chunks of 256 weights before floats are made of it.
template <class F>
struct NarrowSums {
  __m512i sum[2];
  __m256i d[2], m[2];

  NarrowSums(None, const uint8_t* const* s, const Halves& one, const Halves& other) {
    for (int k = 0; k < 2; k++) {
      const uint8_t *a = s[2 * k], *b = s[2 * k + 1];
      const Halves& y = k ? other : one;
      __m512i dot[4];
      for (int half = 0; half < 2; half++) {
        __m512i q[4];
        F::codes(half ? b : a, q);
        for (int i = 0; i < 2; i++) {
          __m512i x = _mm512_dpbusd_epi32(_mm512_setzero_si512(), q[2 * i], _mm512_load_si512(y.q[half] + 128 * i));
          dot[2 * half + i] = _mm512_dpbusd_epi32(x, q[2 * i + 1], _mm512_load_si512(y.q[half] + 128 * i + 64));
        }
      }
      sum[k] = lane_sums<F::most>(dot);
    }
    for (int k = 0; k < 2; k++) {
      d[k] = _mm256_mask_blend_epi16(0xcccc, F::d(s[2 * k]), F::d(s[2 * k + 1]));
      if constexpr (F::lows) m[k] = _mm256_mask_blend_epi16(0xcccc, F::m(s[2 * k]), F::m(s[2 * k + 1]));
    }
  }
  __m512 quads_of(int k, const Halves& y) const {
    const __m512i right = F::bias ? _mm512_add_epi32(sum[k], _mm512_load_si512(y.moved)) : sum[k];
    __m512 v = _mm512_maskz_mul_ps(y.inside, F::number(d[k]), _mm512_cvtepi32_ps(right));
    if (F::lows) v = _mm512_maskz_fmadd_ps(y.inside, F::number(m[k]), _mm512_load_ps(y.sums), v);
    return quads(v, y.d);
  }
  __m128 values(const Halves& one, const Halves& other) const {
    return quads_added(quads_of(0, one), quads_of(1, other));
  }
};

// Two blocks of activations for a grid type: element p of each of 64 points side by side.
struct alignas(64) Elements {
  int8_t q[8][64];      // of four elements a point: four of each block
  int32_t moved32[16];  // -bias times the sums of 32 and of 16
  int16_t moved16[32];
};

// Byte numbers that bring element p of each point of SIZE elements together.
template <int SIZE>
struct ByElement {
  alignas(64) uint8_t of[64] = {};
  constexpr ByElement() {
    for (int i = 0; i < 64; i++) of[i] = uint8_t(i % (64 / SIZE) * SIZE + i / (64 / SIZE));
  }
};
template <int SIZE>
constexpr ByElement<SIZE> by_element;

template <class F>
inline void make_pair(const Activation& a, const Activation& b, int, int, Elements& to) {
  constexpr int size = F::point_size, run = 64 / size;
  for (int half = 0; half < 2; half++) {
    const Activation& from = half ? b : a;
    for (int i = 0; i < 4; i++) {
      alignas(64) int8_t x[64];
      const __m512i order = _mm512_load_si512(by_element<size>.of);
      _mm512_store_si512(x, _mm512_permutexvar_epi8(order, _mm512_load_si512(from.q + 64 * i)));
      for (int p = 0; p < size; p++)
        __builtin_memcpy((size == 8 ? to.q[p] + 32 * half : to.q[4 * half + p]) + run * i, x + run * p, run);
    }
    for (int j = 0; j < 8; j++) to.moved32[8 * half + j] = -F::bias * from.sum32[j];
    for (int g = 0; g < 16; g++) to.moved16[16 * half + g] = int16_t(-F::bias * from.sum16[g]);
  }
}

// Sums of scale * code * y over 64 points: 16 parts in order.
template <class F, int SIZE, class P>
inline __attribute__((always_inline)) __m512i point_sums(const P& points, const __m512i* byte, const Reading& r,
                                                         const int8_t (*y)[64], const Elements& e) {
  __m512i sum = F::pairs && F::bias ? _mm512_load_si512(e.moved32) : _mm512_setzero_si512(), part = sum;
  if (!F::pairs && F::bias) sum = _mm512_madd_epi16(_mm512_load_si512(e.moved16), r.scale);
#pragma GCC unroll 8
  for (int n = 0; n < SIZE; n++) {
    __m512i q = points.element(n, byte[n / (SIZE / 2)]), v = _mm512_load_si512(y[n]);
    if (F::bias) q = _mm512_add_epi8(q, r.moved);
    if constexpr (F::signs) {
      const int bit = 1 << (n + F::first_sign) % 8, next = 1 << (n + 4 + F::first_sign) % 8;
      const __m512i which = SIZE == 8 ? byte64(bit) : _mm512_set1_epi16(short(bit | next << 8));
      v = _mm512_mask_sub_epi8(v, _mm512_test_epi8_mask(r.signs, which), _mm512_setzero_si512(), v);
    }
    if constexpr (F::pairs) {
      sum = _mm512_dpbusd_epi32(sum, q, v);
    } else {  // three times two products fit in an int16
      const __m512i two = _mm512_maddubs_epi16(q, v);
      part = n % 3 ? _mm512_add_epi16(part, two) : two;
      if (n % 3 == 2 || n + 1 == SIZE) sum = _mm512_dpwssd_epi32(sum, part, r.scale);
    }
  }
  return F::pairs ? _mm512_mullo_epi32(sum, r.scale) : sum;
}

// From the sums of eight parts of each of four blocks, of two a register.
inline __m128i sums_of_halves(__m512i x, __m512i y) {
  __m512i z = _mm512_add_epi32(_mm512_unpacklo_epi32(x, y), _mm512_unpackhi_epi32(x, y));
  z = _mm512_add_epi32(z, _mm512_shuffle_epi32(z, _MM_PERM_BADC));
  z = _mm512_add_epi32(z, _mm512_shuffle_i64x2(z, z, 0xb1));
  return _mm_unpacklo_epi32(_mm512_castsi512_si128(z), _mm512_extracti32x4_epi32(z, 2));
}

template <class F>
struct GridSums {
  static constexpr bool of_8 = F::point_size == 8;
  __m512i total[of_8 ? 2 : 4];
  uint64_t d = 0;

  template <class P>
  GridSums(const P& points, const uint8_t* const* s, const Elements& one, const Elements& other) {
    for (int n = 0; n < (of_8 ? 2 : 4); n += 2) {
      Reading r[2];
      __m512i byte[2][2];
      for (int k = 0; k < 2; k++) {
        if constexpr (of_8) F::read(s[2 * k], s[2 * k + 1], r[k]);
        else F::read(s[n + k], r[k]);
      }
      for (int p = 0; p < 2; p++) points.template look<2>(p, r, byte[p]);
      for (int k = 0; k < 2; k++) {
        const Elements& e = (of_8 ? k : n) ? other : one;
        const __m512i both[2] = {byte[0][k], byte[1][k]};
        total[n + k] = point_sums<F, F::point_size>(points, both, r[k], of_8 ? e.q : e.q + 4 * k, e);
      }
    }
    for (int k = 0; k < 4; k++) d |= uint64_t(F::d(s[k])) << (16 * k);
  }
  __m128 values(const Elements&, const Elements&) const {
    __m128i sums;
    if constexpr (of_8) sums = sums_of_halves(total[0], total[1]);
    else sums = sums_of_4(total);
    const __m128 scale = _mm_mul_ps(_mm_cvtph_ps(_mm_cvtsi64_si128(int64_t(d))), _mm_set1_ps(F::factor));
    return _mm_mul_ps(scale, _mm_cvtepi32_ps(sums));
  }
};

// One token: sums of 32 products and more, codes in registers. Two products fit into 16 bits in every type, four where
// the bias is not 128.

template <class F>
constexpr int sums_of_block = Block<F>::eight ? 8 : 16;  // of activations that it needs

template <class F>
constexpr bool asks = F::wide && !__is_same(F, Q6_K);  // for lines, on every CPU: fewer bytes an instruction

template <class F>
constexpr bool by_two = vnni && F::wide && F::bias == 128;  // two groups share two registers

template <class F>
inline void put_in_order(const int8_t* q, int8_t* to) {  // codes in registers have their own order
  if (!by_two<F>) __builtin_memcpy(to, q, 256);
  for (int i = 0; i < 16 && by_two<F>; i++)
    __builtin_memcpy(to + 16 * i, q + 64 * (i / 4) + 32 * (i % 2) + 16 * (i / 2 % 2), 16);
}

inline __m128i halves_added(__m256i x) {
  return _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}
// Words 0 and 1, 2 and 3 of x, then of y in each half; `add` adds them.
template <class Add>
inline __m256i pairs_added(__m256i x, __m256i y, Add add) {
  const __m256 a = _mm256_castsi256_ps(x), b = _mm256_castsi256_ps(y);
  return add(_mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88)), _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xdd)));
}
inline __m256i pairs_added(__m256i x, __m256i y) {
  return pairs_added(x, y, [](__m256i a, __m256i b) { return _mm256_add_epi32(a, b); });
}
inline __m128i pairs_added(__m128i x, __m128i y) {
  const __m128 a = _mm_castsi128_ps(x), b = _mm_castsi128_ps(y);
  return _mm_add_epi32(_mm_castps_si128(_mm_shuffle_ps(a, b, 0x88)), _mm_castps_si128(_mm_shuffle_ps(a, b, 0xdd)));
}
inline __m128i sums_of_4(const __m256i* x) {
  return halves_added(pairs_added(pairs_added(x[0], x[1]), pairs_added(x[2], x[3])));
}
inline __m128i sums_of_4(const __m128i* x) {
  return pairs_added(pairs_added(x[0], x[1]), pairs_added(x[2], x[3]));
}

struct Spread {  // the bytes of a register's scales: of one pair of groups, or of two groups; or of two registers' both
  alignas(32) uint8_t pair[8][32] = {}, two[4][32] = {}, pairs[4][32] = {}, twos[2][32] = {};
  constexpr Spread() {
    for (int k = 0; k < 8; k++)
      for (int i = 0; i < 32; i++) pair[k][i] = uint8_t(2 * k + i % 2);
    for (int k = 0; k < 4; k++)
      for (int i = 0; i < 32; i++) {
        two[k][i] = uint8_t(4 * k + i / 16 * 2 + i % 2);
        pairs[k][i] = uint8_t(4 * k + i % 16 / 8 * 2 + i % 2);
        if (k < 2) twos[k][i] = uint8_t(8 * k + i % 16 / 8 * 4 + i / 16 * 2 + i % 2);
      }
  }
};
constexpr Spread spread;

// total: 8 parts of the sum of scale * (q - bias) * y; low: 4 parts of the sum of low * y.
template <class F>
inline __attribute__((always_inline)) void block_sums(const Block<F>& block, const int8_t* y,
                                                      const int16_t* sums, __m256i& total, __m128i& low) {
  constexpr bool eight = Block<F>::eight;
  const Scales sc = block.scales();
  const __m128i all32 = _mm_loadu_si128((const __m128i*)sums);
  const __m256i all16 = eight ? _mm256_zextsi128_si256(all32) : _mm256_loadu_si256((const __m256i*)sums);
  __m256i part[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  if (F::bias && !Block<F>::moved && (F::bias != 128 || vnni) && !Block<F>::centered) {
    __m256i moved = eight ? _mm256_zextsi128_si256(_mm_madd_epi16(_mm256_castsi256_si128(sc.scale), all32))
                          : _mm256_madd_epi16(sc.scale, all16);
    part[0] = _mm256_mullo_epi32(moved, _mm256_set1_epi32(-F::bias));
  }
  auto met = [&](int k) { return _mm256_load_si256((const __m256i*)(y + 32 * k)); };
  auto dots = [&](int k) { return factors(block, k, met(k)); };
  const __m256i none = _mm256_setzero_si256();
  const __m256i lower = _mm256_permute4x64_epi64(sc.scale, 0x44), upper = _mm256_permute4x64_epi64(sc.scale, 0xee);
  if constexpr (!Block<F>::scaled && vnni) {
#pragma GCC unroll 8
    for (int k = 0; k < 8; k++) part[k % 2] = dots(k).four(part[k % 2]);
  } else if constexpr (!Block<F>::scaled) {  // codes so small that all fit into 16 bits
    __m256i x = dots(0).two();
#pragma GCC unroll 8
    for (int k = 1; k < 8; k++) x = _mm256_add_epi16(x, dots(k).two());
    part[1] = _mm256_madd_epi16(x, sc.scale);
  } else if constexpr (by_two<F>) {
    const __m256i wide = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(sc.scale));
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
      __m256i q[2];
      block.two(2 * k, q);
      const __m256i dot = four_products(four_products(none, q[0], met(2 * k)), q[1], met(2 * k + 1));
      const __m256i halves = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
      const __m256i by = _mm256_permutevar8x32_epi32(wide, _mm256_add_epi32(halves, _mm256_set1_epi32(2 * k)));
      part[k % 2] = _mm256_add_epi32(part[k % 2], _mm256_mullo_epi32(dot, by));
    }
  } else if constexpr (vnni) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
      const uint8_t* const spread_of = eight ? spread.pairs[k] : spread.twos[k % 2];
      const __m256i which = _mm256_load_si256((const __m256i*)spread_of);
      const __m256i by = _mm256_shuffle_epi8(eight || k < 2 ? lower : upper, which);
      const __m256i x = _mm256_packs_epi32(dots(2 * k).four(none), dots(2 * k + 1).four(none));
      part[k % 2] = word_products(part[k % 2], x, by);
    }
  } else {
#pragma GCC unroll 8
    for (int k = 0; k < 8; k++) {
      const uint8_t* const spread_of = eight ? spread.pair[k] : spread.two[k % 4];
      const __m256i which = _mm256_load_si256((const __m256i*)spread_of);
      const __m256i by = _mm256_shuffle_epi8(eight || k < 4 ? lower : upper, which);
      part[k % 2] = _mm256_add_epi32(part[k % 2], _mm256_madd_epi16(dots(k).two(), by));
      asm("" : "+x"(part[k % 2]));  // or a compiler adds all at the end, out of memory
    }
  }
  total = _mm256_add_epi32(part[0], part[1]);
  if (Block<F>::moved) {
    const __m128i moves = _mm_madd_epi16(_mm256_castsi256_si128(sc.low), all32);
    total = _mm256_add_epi32(_mm256_slli_epi32(total, 3), _mm256_zextsi128_si256(moves));
  }
  if (F::lows) {
    if (eight) low = _mm_madd_epi16(_mm256_castsi256_si128(sc.low), all32);
    else low = halves_added(_mm256_madd_epi16(sc.low, all16));
  }
}

// The values of N <= 4 blocks, `apart` bytes from each other; `y` and `sums`: what they meet, as of `Ordered`, all of
// them the SAME or one behind the other.
template <class F>
class WideSums {
 public:
  template <int N, bool SAME = false>
  inline __attribute__((always_inline)) void put(const uint8_t* s, const int8_t* y, const int16_t* sums,
                                                 size_t apart = F::bytes) {
    __m256i total[4];
    __m128i low[4];
    float d[4] = {}, m[4] = {};
    for (int i = 0; i < 4; i++) total[i] = _mm256_setzero_si256(), low[i] = _mm_setzero_si128();
#pragma GCC unroll 4
    for (int i = 0; i < N; i++) {
      const Block<F> block(s + i * apart);
      const int n = SAME ? 0 : i;
      block_sums<F>(block, y + 256 * n, sums + sums_of_block<F> * n, total[i], low[i]);
      d[i] = block.d();
      if (F::lows) m[i] = block.m();
    }
    value_ = _mm_mul_ps(_mm_setr_ps(d[0], d[1], d[2], d[3]), _mm_cvtepi32_ps(sums_of_4(total)));
    if (F::lows) value_ = _mm_fnmadd_ps(_mm_setr_ps(m[0], m[1], m[2], m[3]), _mm_cvtepi32_ps(sums_of_4(low)), value_);
  }
  __m128 values() const { return value_; }

 private:
  __m128 value_;
};

// The sum of eight values times scales: 0 and 4, 1 and 5, ..., then their first and third, their second and fourth.
inline __attribute__((always_inline)) float sum_of_8(__m256 v, const float* d) {
  __m128 q = _mm_mul_ps(_mm_load_ps(d), _mm256_castps256_ps128(v));
  q = _mm_fmadd_ps(_mm_load_ps(d + 4), _mm256_extractf128_ps(v, 1), q);
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
// Likewise those of four times eight values.
inline __attribute__((always_inline)) __m128 sums_of_8(const __m256* v, const float* d) {
  const __m256 low = _mm256_broadcast_ps((const __m128*)d), high = _mm256_broadcast_ps((const __m128*)(d + 4));
  auto two = [&](__m256 x, __m256 y) {
    const __m256 q = _mm256_mul_ps(low, _mm256_permute2f128_ps(x, y, 0x20));
    return _mm256_fmadd_ps(high, _mm256_permute2f128_ps(x, y, 0x31), q);
  };
  const __m256 x = two(v[0], v[2]), y = two(v[1], v[3]);
  const __m256 q = _mm256_add_ps(_mm256_shuffle_ps(x, y, 0x44), _mm256_shuffle_ps(x, y, 0xee));
  const __m128 a = _mm256_castps256_ps128(q), b = _mm256_extractf128_ps(q, 1);
  return _mm_add_ps(_mm_shuffle_ps(a, b, 0x88), _mm_shuffle_ps(a, b, 0xdd));
}

// The values of eight blocks of 32 without the scales of activations, the even ones before the odd ones, where PART
// only of the first `count`; y: their activations as `codes_of_two` has codes, and F::bias times their sums or, where
// there are lows, the sums.
template <class F, bool PART = false>
inline __attribute__((always_inline)) __m256 narrow_values(const uint8_t* s, const int8_t* y, int count = 8) {
  const __m256i ones = _mm256_set1_epi16(1);
  auto two = [&](int i, int h) { return _mm256_load_si256((const __m256i*)(y + 64 * i + 32 * h)); };
  auto of_two = [&](int i) {  // blocks 2 i and 2 i + 1
    if (PART && 2 * i >= count) return _mm256_setzero_si256();
    __m256i q[2];
    codes_of_two<F>(s + 2 * i * F::bytes, s + (2 * i + 1) * F::bytes, q);
    if (vnni) return four_products(four_products(_mm256_setzero_si256(), q[0], two(i, 0)), q[1], two(i, 1));
    const __m256i first = factors<F::bias>(q[0], two(i, 0)).two(), last = factors<F::bias>(q[1], two(i, 1)).two();
    if (F::bias != 128) return _mm256_add_epi16(first, last);
    return _mm256_add_epi32(_mm256_madd_epi16(first, ones), _mm256_madd_epi16(last, ones));
  };
  auto of_four = [&](int i) {
    const __m256i a = of_two(i), b = of_two(i + 1);
    if (F::bias == 128 || vnni) return pairs_added(a, b);
    return _mm256_madd_epi16(pairs_added(a, b, [](__m256i x, __m256i y) { return _mm256_add_epi16(x, y); }), ones);
  };
  __m256i sum = pairs_added(of_four(0), of_four(2));  // even blocks, odd blocks
  const __m256i low = _mm256_load_si256((const __m256i*)(y + 256));
  if (F::bias && (F::bias != 128 || vnni)) sum = _mm256_sub_epi32(sum, low);
  __m256 v = _mm256_mul_ps(scales_of<F>(s, 0), _mm256_cvtepi32_ps(sum));
  if (F::lows) v = _mm256_fmadd_ps(scales_of<F>(s, 2), _mm256_cvtepi32_ps(low), v);
  if (PART) {  // what is behind them is the next row's, and its scales may be no numbers
    const __m256i places = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    v = _mm256_and_ps(v, _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(count), places)));
  }
  return v;
}

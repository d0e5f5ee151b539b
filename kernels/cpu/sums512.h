// One token: the sums of blocks of 256, whose codes are unpacked in registers and multiplied with activations that were
// put into the same order, in 16-byte lanes, before.

// int16 lane indices that spread the scales of a type over what `packs` makes of registers 2 k and 2 k + 1.
template <class F>
struct Spread {
  alignas(64) int16_t index[2][32] = {};
  constexpr Spread() {
    for (int k = 0; k < 2; k++)
      for (int i = 0; i < 32; i++)
        index[k][i] = int16_t(F::group[4 * (2 * k + i % 8 / 4) + i / 8] / (F::pairs ? 2 : 1));
  }
};
template <class F>
constexpr Spread<F> spread;

template <class F>
constexpr int sums_of_block = F::pairs ? 8 : 16;  // of activations that it needs

template <class F>
constexpr bool asks = F::grid;  // ahead for weights, on every CPU

// 256 activations in the order that codes have in registers.
template <class F>
inline void put_in_order(const int8_t* q, int8_t* to) {
  for (int k = 0; k < 4; k++) {  // a register's four groups come from at most two
    const uint8_t* group = F::group + 4 * k;
    const int one = group[0] / 4, other = group[3] / 4;
    auto half = [&](int i) { return (group[i / 2] / 4 == one ? 0 : 8) + 2 * (group[i / 2] % 4) + i % 2; };
    const __m512i from = _mm512_setr_epi64(half(0), half(1), half(2), half(3), half(4), half(5), half(6), half(7));
    const __m512i a = _mm512_load_si512(q + 64 * one), b = _mm512_load_si512(q + 64 * other);
    _mm512_store_si512(to + 64 * k, _mm512_permutex2var_epi64(a, from, b));
  }
}

// The values of N <= 4 blocks before floats are made of them; `y` and `sums`: what they meet, as of `Ordered`.
template <class F>
class WideSums {
 public:
  template <int N>
  inline __attribute__((always_inline)) void put(const uint8_t* s, const int8_t* y, const int16_t* sums) {
    __m512i total[4];
    __m128i low[4];
    uint32_t d[4] = {};
    for (int i = 0; i < 4; i++) total[i] = _mm512_setzero_si512(), low[i] = _mm_setzero_si128();
    for (int i = 0; i < N; i++) {
      add(s + i * F::bytes, y + 256 * i, sums + sums_of_block<F> * i, total[i], low[i]);
      d[i] = F::d(s + i * F::bytes);
    }
    total_ = lanes_of_4(total);
    if (F::lows) low_ = sums_of_4(low);
    d_ = _mm_setr_epi32(int(d[0]), int(d[1]), int(d[2]), int(d[3]));
  }
  inline __attribute__((always_inline)) __m128 values() const {
    const __m128i apart = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    const __m256 dm = _mm256_cvtph_ps(_mm_shuffle_epi8(d_, apart));
    __m128 scale = _mm256_castps256_ps128(dm);
    if (F::factor != 1.0f) scale = _mm_mul_ps(scale, _mm_set1_ps(F::factor));
    const __m128 value = _mm_mul_ps(scale, _mm_cvtepi32_ps(lanes_added(total_)));
    return F::lows ? _mm_fnmadd_ps(_mm256_extractf128_ps(dm, 1), _mm_cvtepi32_ps(low_), value) : value;
  }

 private:
  // total: 16 parts of the sum of scale * (q - bias) * y; low: 4 parts of the sum of low * y.
  static inline __attribute__((always_inline)) void add(const uint8_t* s, const int8_t* y, const int16_t* sums,
                                                        __m512i& total, __m128i& low) {
    const Scales sc = F::scales(s);
    const __m128i of32 = _mm_loadu_si128((const __m128i*)sums);
    const __m512i scale = _mm512_castsi256_si512(sc.scale), none = _mm512_setzero_si512();
    __m512i q[4], part[2] = {none, none};
    F::codes(s, q);
    if (F::bias) {
      __m256i moved;
      if (F::pairs) moved = _mm256_zextsi128_si256(_mm_madd_epi16(_mm256_castsi256_si128(sc.scale), of32));
      else moved = _mm256_madd_epi16(sc.scale, _mm256_loadu_si256((const __m256i*)sums));
      constexpr bool shifts = (F::bias & (F::bias - 1)) == 0;
      moved = shifts ? _mm256_slli_epi32(moved, __builtin_ctz(F::bias | 1 << 30))
                     : _mm256_mullo_epi32(moved, _mm256_set1_epi32(F::bias));
      part[0] = _mm512_zextsi256_si512(_mm256_sub_epi32(_mm256_setzero_si256(), moved));
    }
    if constexpr (F::unscaled) {
      for (int k = 0; k < 4; k++) part[k & 1] = _mm512_dpbusd_epi32(part[k & 1], q[k], _mm512_load_si512(y + 64 * k));
    } else if constexpr (F::large) {  // registers 2 k and 2 k + 1 share their scales
      const __m512i wide = _mm512_cvtepi16_epi32(sc.scale);
      for (int k = 0; k < 2; k++) {
        __m512i dot = _mm512_dpbusd_epi32(none, q[2 * k], _mm512_load_si512(y + 128 * k));
        dot = _mm512_dpbusd_epi32(dot, q[2 * k + 1], _mm512_load_si512(y + 128 * k + 64));
        const __m512i quarters = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
        const __m512i at = _mm512_add_epi32(quarters, _mm512_set1_epi32(4 * k));
        part[k] = _mm512_add_epi32(part[k], _mm512_mullo_epi32(dot, _mm512_permutexvar_epi32(at, wide)));
      }
    } else {
      for (int k = 0; k < 2; k++) {  // sums of four products fit in an int16
        const __m512i* v = (const __m512i*)(y + 128 * k);
        const __m512i first = _mm512_dpbusd_epi32(none, q[2 * k], _mm512_load_si512(v));
        const __m512i second = _mm512_dpbusd_epi32(none, q[2 * k + 1], _mm512_load_si512(v + 1));
        const __m512i by = _mm512_permutexvar_epi16(_mm512_load_si512(spread<F>.index[k]), scale);
        part[k] = _mm512_dpwssd_epi32(part[k], _mm512_packs_epi32(first, second), by);
      }
    }
    total = _mm512_add_epi32(part[0], part[1]);
    if (F::lows) {
      if (F::pairs) low = _mm_madd_epi16(_mm256_castsi256_si128(sc.low), of32);
      else low = halves_added(_mm256_madd_epi16(sc.low, _mm256_loadu_si256((const __m256i*)sums)));
    }
  }

  __m512i total_;
  __m128i low_, d_;
};

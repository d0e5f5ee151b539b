// Sixteen floats, and what a step does with them: the same bits at every level. Fused multiply-adds are explicit.
// Of equals, and where one of two is NaN, `larger` and `smaller` give the second.

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float of_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

#if defined(AVX512_LEVEL)
struct Lanes {
  __m512 v;
};
inline Lanes lanes(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Lanes lanes(const float* p, int n) { return {_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p)}; }
inline void put(float* p, Lanes x) { _mm512_storeu_ps(p, x.v); }
inline void put(float* p, Lanes x, int n) { _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), x.v); }
inline Lanes all(float x) { return {_mm512_set1_ps(x)}; }
inline Lanes operator+(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Lanes operator/(Lanes a, Lanes b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Lanes larger(Lanes a, Lanes b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Lanes smaller(Lanes a, Lanes b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Lanes two_to(Lanes n) {  // n whole, -126 to 127
  const __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23))};
}
inline Lanes halves(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
inline Lanes bfloats(const uint16_t* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16))};
}
inline Lanes bytes(const int8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)))};
}
constexpr int rows_at_once = 8, columns_at_once = 2;  // as many accumulators as registers hold

#elif defined(AVX256_LEVEL)
struct Lanes {
  __m256 a, b;
};
inline Lanes lanes(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void put(float* p, Lanes x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
inline Lanes all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Lanes operator+(Lanes x, Lanes y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline Lanes operator-(Lanes x, Lanes y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline Lanes operator*(Lanes x, Lanes y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline Lanes operator/(Lanes x, Lanes y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline Lanes fma(Lanes x, Lanes y, Lanes z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
inline Lanes larger(Lanes x, Lanes y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline Lanes smaller(Lanes x, Lanes y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline __m256 two_to(__m256 n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline Lanes two_to(Lanes n) { return {two_to(n.a), two_to(n.b)}; }
inline Lanes halves(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p + 1))};
}
inline __m256 eight_bfloats(const uint16_t* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
inline Lanes bfloats(const uint16_t* p) { return {eight_bfloats(p), eight_bfloats(p + 8)}; }
inline __m256 eight_bytes(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
}
inline Lanes bytes(const int8_t* p) { return {eight_bytes(p), eight_bytes(p + 8)}; }
constexpr int rows_at_once = 2, columns_at_once = 2;

#elif defined(NEON_LANES)
struct Lanes {
  float32x4_t v[4];
};
template <class Rule>
inline __attribute__((always_inline)) Lanes each(Rule rule) {
  return {{rule(0), rule(1), rule(2), rule(3)}};
}
inline Lanes lanes(const float* p) {
  return each([=](int i) { return vld1q_f32(p + 4 * i); });
}
inline void put(float* p, const Lanes& x) {
  for (int i = 0; i < 4; i++) vst1q_f32(p + 4 * i, x.v[i]);
}
inline Lanes all(float x) {
  return each([=](int) { return vdupq_n_f32(x); });
}
inline Lanes operator+(const Lanes& a, const Lanes& b) {
  return each([&](int i) { return vaddq_f32(a.v[i], b.v[i]); });
}
inline Lanes operator-(const Lanes& a, const Lanes& b) {
  return each([&](int i) { return vsubq_f32(a.v[i], b.v[i]); });
}
inline Lanes operator*(const Lanes& a, const Lanes& b) {
  return each([&](int i) { return vmulq_f32(a.v[i], b.v[i]); });
}
inline Lanes operator/(const Lanes& a, const Lanes& b) {
  return each([&](int i) { return vdivq_f32(a.v[i], b.v[i]); });
}
inline Lanes fma(const Lanes& a, const Lanes& b, const Lanes& c) {
  return each([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
}
inline float32x4_t larger(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
inline Lanes larger(const Lanes& a, const Lanes& b) {
  return each([&](int i) { return larger(a.v[i], b.v[i]); });
}
inline Lanes smaller(const Lanes& a, const Lanes& b) {
  return each([&](int i) { return vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
}
inline Lanes two_to(const Lanes& n) {
  return each([&](int i) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n.v[i]), vdupq_n_s32(127)), 23));
  });
}
inline Lanes halves(const uint16_t* p) {
  return each([=](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))); });
}
inline Lanes bfloats(const uint16_t* p) {
  return each([=](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16)); });
}
inline Lanes bytes(const int8_t* p) {
  const int8x16_t x = vld1q_s8(p);
  const int16x8_t low = vmovl_s8(vget_low_s8(x)), high = vmovl_high_s8(x);
  return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_high_s16(low)),
           vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_high_s16(high))}};
}
constexpr int rows_at_once = 2, columns_at_once = 2;

#else
struct Lanes {
  float v[16];
};
template <class Rule>
inline Lanes each(Rule rule) {
  Lanes y;
  for (int i = 0; i < 16; i++) y.v[i] = rule(i);
  return y;
}
inline Lanes lanes(const float* p) {
  return each([=](int i) { return p[i]; });
}
inline void put(float* p, Lanes x) { std::memcpy(p, x.v, sizeof x.v); }
inline Lanes all(float x) {
  return each([=](int) { return x; });
}
inline Lanes operator+(const Lanes& a, const Lanes& b) {
  return each([&](int i) { return a.v[i] + b.v[i]; });
}
inline Lanes operator-(const Lanes& a, const Lanes& b) {
  return each([&](int i) { return a.v[i] - b.v[i]; });
}
inline Lanes operator*(const Lanes& a, const Lanes& b) {
  return each([&](int i) { return a.v[i] * b.v[i]; });
}
inline Lanes operator/(const Lanes& a, const Lanes& b) {
  return each([&](int i) { return a.v[i] / b.v[i]; });
}
inline Lanes fma(const Lanes& a, const Lanes& b, const Lanes& c) {
  return each([&](int i) { return __builtin_fmaf(a.v[i], b.v[i], c.v[i]); });
}
inline Lanes larger(const Lanes& a, const Lanes& b) {
  return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline Lanes smaller(const Lanes& a, const Lanes& b) {
  return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline Lanes two_to(const Lanes& n) {
  return each([&](int i) {
    return of_bits((bits_of(n.v[i] + 12582912.0f) + 127) << 23);  // 1.5 * 2^23: the lowest bits are n
  });
}
inline float one_half(uint16_t h) {
  uint32_t sign = uint32_t(h & 0x8000) << 16, size = h & 0x7fff;
  if (size >= 0x7c00) return of_bits(sign | 0x7f800000 | (size & 0x3ff) << 13);
  if (size >= 0x400) return of_bits(sign | ((size << 13) + 0x38000000));
  float tiny = float(size) * 0x1p-24f;
  return sign ? -tiny : tiny;
}
inline Lanes halves(const uint16_t* p) {
  return each([=](int i) { return one_half(p[i]); });
}
inline Lanes bfloats(const uint16_t* p) {
  return each([=](int i) { return of_bits(uint32_t(p[i]) << 16); });
}
inline Lanes bytes(const int8_t* p) {
  return each([=](int i) { return float(p[i]); });
}
constexpr int rows_at_once = 1, columns_at_once = 1;
#endif

#if !defined(AVX512_LEVEL)
inline Lanes lanes(const float* p, int n) {
  if (n == 16) return lanes(p);
  float padded[16] = {};
  std::memcpy(padded, p, sizeof(float) * n);
  return lanes(padded);
}
inline void put(float* p, Lanes x, int n) {
  if (n == 16) return put(p, x);
  float whole[16];
  put(whole, x);
  std::memcpy(p, whole, sizeof(float) * n);
}
#endif

// Sixteen become eight, four, two and one: lane i with lane i + half.
#if defined(AVX512_LEVEL) || defined(AVX256_LEVEL)
inline __m256 fold(Lanes x, bool add) {
#if defined(AVX512_LEVEL)
  __m256 a = _mm512_castps512_ps256(x.v), b = _mm512_extractf32x8_ps(x.v, 1);
#else
  __m256 a = x.a, b = x.b;
#endif
  return add ? _mm256_add_ps(a, b) : _mm256_max_ps(a, b);
}
inline float sum(Lanes x) {
  __m256 eight = fold(x, true);
  __m128 v = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  v = _mm_add_ps(v, _mm_movehl_ps(v, v));
  return _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)));
}
inline float largest(Lanes x) {
  __m256 eight = fold(x, false);
  __m128 v = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  v = _mm_max_ps(v, _mm_movehl_ps(v, v));
  return _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)));
}
#elif defined(NEON_LANES)
inline float sum(const Lanes& x) {
  const float32x4_t four = vaddq_f32(vaddq_f32(x.v[0], x.v[2]), vaddq_f32(x.v[1], x.v[3]));
  return vpadds_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)));
}
inline float largest(const Lanes& x) {
  const float32x4_t four = larger(larger(x.v[0], x.v[2]), larger(x.v[1], x.v[3]));
  float v[4];
  vst1q_f32(v, larger(four, vextq_f32(four, four, 2)));
  return v[0] > v[1] ? v[0] : v[1];
}
#else
inline float sum(Lanes x) {
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; i++) x.v[i] += x.v[i + half];
  return x.v[0];
}
inline float largest(Lanes x) {
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; i++) x.v[i] = x.v[i] > x.v[i + half] ? x.v[i] : x.v[i + half];
  return x.v[0];
}
#endif

// 2^n, and e^r - 1 divided by r, where e^x is the product of 2^n and e^r.
struct Power {
  Lanes two, y, r;
};

// x is held to [-87, 88]; of NaN NaN.
inline Power power(Lanes x) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to whole numbers
  x = smaller(all(88.0f), larger(all(-87.0f), x));
  Lanes n = fma(x, all(1.44269504f), all(magic)) - all(magic);
  Lanes r = fma(n, all(-0.693145752f), x);
  r = fma(n, all(-1.42860677e-6f), r);
  const float factors[] = {8.33333333e-3f, 4.16666667e-2f, 0.166666667f, 0.5f, 1.0f};
  Lanes y = all(1.38888889e-3f);
  for (float factor : factors) y = fma(y, r, all(factor));
  return {two_to(n), y, r};
}

// e to the x, 1 to 2 units in the last place.
inline Lanes exponential(Lanes x) {
  const Power e = power(x);
  return fma(e.y, e.r, all(1.0f)) * e.two;
}

inline float exponential(float x) {
  float v[16];
  put(v, exponential(all(x)));
  return v[0];
}

inline Lanes logistic(Lanes x) { return all(1.0f) / (all(1.0f) + exponential(all(0.0f) - x)); }

// The hyperbolic tangent: p / (p + 2) of p = e^2x - 1, which small x leave its digits.
inline Lanes tangent(Lanes x) {
  const Power e = power(x + x);
  const Lanes p = fma(e.two, e.y * e.r, e.two - all(1.0f));
  return p / (p + all(2.0f));
}

// log(1 + e^x): the larger of x and 0, and log(1 + t) of t = e^-|x|, which is 2 atanh(t / (2 + t)); of NaN NaN.
inline Lanes softplus(Lanes x) {
  const Lanes t = exponential(all(0.0f) - larger(x, all(0.0f) - x)), s = t / (t + all(2.0f)), square = s * s;
  Lanes y = all(1.0f / 15);
  for (int n = 13; n > 0; n -= 2) y = fma(y, square, all(1.0f / float(n)));
  return larger(all(0.0f), x) + (s + s) * y;
}

// One token: each row's bytes are read once, in order, unpacked in registers and multiplied, four times 256 weights a
// step.

// Nothing, for the sum of products of `a` and `b` to begin with. A compiler would copy one zero each time, which costs
// what a product costs; CPUs make a zero while they rename registers.
template <class A, class B>
inline int32x4_t nothing(A a, B b) {
  int32x4_t zero;
  asm("movi %0.2d, #0" : "=w"(zero) : "w"(a), "w"(b));
  return zero;
}
inline int32x4_t dot16(int32x4_t sum, uint8x16_t q, const int8_t* y) {
  return vdotq_s32(sum, vreinterpretq_s8_u8(q), vld1q_s8(y));
}
inline int32x4_t dot16(uint8x16_t q, const int8_t* y) { return dot16(nothing(q, q), q, y); }
inline int32x4_t dot32(const uint8x16_t* q, const int8_t* y) { return dot16(dot16(q[0], y), q[1], y + 16); }

// Each register's four added: a lane each.
inline int32x4_t added(int32x4_t a, int32x4_t b, int32x4_t c, int32x4_t d) {
  return vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d));
}

// Four parts of the sum of x * sums of y, over 8 pairs of groups or 16 groups.
template <bool PAIRS>
inline int32x4_t products(const int16x8_t* x, const Activation& a) {
  const int16x8_t y = vld1q_s16(PAIRS ? a.sum32 : a.sum16);
  const int32x4_t sum = vmlal_high_s16(vmull_s16(vget_low_s16(x[0]), vget_low_s16(y)), x[0], y);
  if (PAIRS) return sum;
  const int16x8_t z = vld1q_s16(a.sum16 + 8);
  return vmlal_high_s16(vmlal_s16(sum, vget_low_s16(x[1]), vget_low_s16(z)), x[1], z);
}

// Four parts each: the sum of scale * (q - bias) * y, and of low * y.
template <class F>
inline __attribute__((always_inline)) void block_sums(const Registers<F>& r, const Activation& a, int32x4_t& total,
                                                      int32x4_t& low) {
  constexpr bool shifted = Registers<F>::shifted;
  const Scales sc = r.scales();
  uint8x16_t q[16];
  r.codes(q);
  if constexpr (F::pairs) {
    int32x4_t dot[8];
    for (int j = 0; j < 8; j++) dot[j] = dot32(q + 2 * j, a.q + 32 * j);
    total = vmulq_s32(added(dot[0], dot[1], dot[2], dot[3]), vmovl_s16(vget_low_s16(sc.scale[0])));
    total = vmlaq_s32(total, added(dot[4], dot[5], dot[6], dot[7]), vmovl_high_s16(sc.scale[0]));
  } else {
    int32x4_t dot[16], by[4];
    for (int g = 0; g < 16; g++) dot[g] = dot16(q[g], a.q + 16 * g);
    int16x8_t first = sc.scale[0], second = sc.scale[1];
    if (shifted) {  // groups 2 k, 2 k + 1, 2 k + 8, 2 k + 9 together
      const int32x4_t x = vreinterpretq_s32_s16(first), y = vreinterpretq_s32_s16(second);
      first = vreinterpretq_s16_s32(vzip1q_s32(x, y));
      second = vreinterpretq_s16_s32(vzip2q_s32(x, y));
    }
    by[0] = vmovl_s16(vget_low_s16(first));
    by[1] = vmovl_high_s16(first);
    by[2] = vmovl_s16(vget_low_s16(second));
    by[3] = vmovl_high_s16(second);
    int32x4_t sum[4];
    for (int k = 0; k < 4; k++)
      sum[k] = shifted ? added(dot[2 * k], dot[2 * k + 1], dot[2 * k + 8], dot[2 * k + 9])
                       : added(dot[4 * k], dot[4 * k + 1], dot[4 * k + 2], dot[4 * k + 3]);
    if (shifted) sum[1] = vshrq_n_s32(sum[1], 2), sum[2] = vshrq_n_s32(sum[2], 4);
    total = vmulq_s32(sum[0], by[0]);
    for (int k = 1; k < 4; k++) total = vmlaq_s32(total, sum[k], by[k]);
  }
  if (Registers<F>::bias) total = vmlsq_s32(total, products<F::pairs>(sc.scale, a), vdupq_n_s32(Registers<F>::bias));
  if (F::lows) low = products<F::pairs>(sc.low, a);
}

// The values of four blocks, or of N that there are, from `next`, which gives a block and its activations.
template <class F, class Next>
inline __attribute__((always_inline)) float32x4_t wide_values(int n, const Next& next) {
  int32x4_t total[4], low[4];
  uint32_t both[4];  // d, and m where there is one
#pragma GCC unroll 1
  for (int k = 0; k < n; k++) {
    const auto [s, a] = next();
    const Registers<F> r(s);
    block_sums<F>(r, *a, total[k], low[k]);
    both[k] = r.d();
  }
  const float32x4_t sum = vcvtq_f32_s32(added(total[0], total[1], total[2], total[3]));
  const uint16x4x2_t x = vld2_u16(reinterpret_cast<const uint16_t*>(both));
  float32x4_t scale = vcvt_f32_f16(vreinterpret_f16_u16(x.val[0]));
  if (Registers<F>::factor != 1.0f) scale = vmulq_n_f32(scale, Registers<F>::factor);
  const float32x4_t value = vmulq_f32(scale, sum);
  if (!F::lows) return value;
  const float32x4_t m = vcvt_f32_f16(vreinterpret_f16_u16(x.val[1]));
  return vfmsq_f32(value, m, vcvtq_f32_s32(added(low[0], low[1], low[2], low[3])));
}

// q[0] to q[3] of 256 weights.
template <class F>
inline __attribute__((always_inline)) float32x4_t quarters(const uint8_t* s, const Activation& a) {
  using R = Registers<F>;
  int32x4_t dot[8];
  for (int j = 0; j < 8; j++) {
    uint8x16_t q[2];
    R(s + j * F::bytes).codes(q);
    dot[j] = dot32(q, a.q + 32 * j);
  }
  int32x4_t even = added(dot[0], dot[2], dot[4], dot[6]), odd = added(dot[1], dot[3], dot[5], dot[7]);
  if constexpr (R::bias != 0) {
    constexpr int right = __builtin_ctz(128 / R::bias);
    even = vsraq_n_s32(even, vld1q_s32(a.low32), right);
    odd = vsraq_n_s32(odd, vld1q_s32(a.low32 + 4), right);
  }
  float32x4_t v = vmulq_f32(R::d(s), vcvtq_f32_s32(even)), w = vmulq_f32(R::d(s + F::bytes), vcvtq_f32_s32(odd));
  if constexpr (F::lows) {
    const int16x8_t sums = vld1q_s16(a.sum32);
    v = vfmaq_f32(v, R::m(s), vcvtq_f32_s32(vmovl_s16(vget_low_s16(vuzp1q_s16(sums, sums)))));
    w = vfmaq_f32(w, R::m(s + F::bytes), vcvtq_f32_s32(vmovl_s16(vget_low_s16(vuzp2q_s16(sums, sums)))));
  }
  return vfmaq_f32(vmulq_f32(vld1q_f32(a.d), v), vld1q_f32(a.d + 4), w);
}

// The same where 16 elements share a scale.
template <class F>
inline __attribute__((always_inline)) float32x4_t quarters_by_16(const uint8_t* s, const Activation& a) {
  using R = Registers<F>;
  int32x4_t dot[16];
  for (int j = 0; j < 8; j++) {
    uint8x16_t q[2];
    R(R::at(s, j)).codes(q);
    for (int k = 0; k < 2; k++) dot[2 * j + k] = dot16(q[k], a.q + 32 * j + 16 * k);
  }
  float32x4_t v[2];
  for (int odd = 0; odd < 2; odd++)
    for (int k = 0; k < 2; k++) {
      const int g = 2 * odd + k;
      const float32x4_t sum = vcvtq_f32_s32(added(dot[g], dot[g + 4], dot[g + 8], dot[g + 12]));
      v[odd] = k ? vfmaq_f32(v[odd], R::d(s, g), sum) : vmulq_f32(R::d(s, g), sum);
    }
  return vfmaq_f32(vmulq_f32(vld1q_f32(a.d), v[0]), vld1q_f32(a.d + 4), v[1]);
}

template <class F, class Next>
inline __attribute__((always_inline)) float32x4_t narrow_values(int n, const Next& next) {
  float64x2_t q[4];
#pragma GCC unroll 1
  for (int k = 0; k < n; k++) {
    const auto [s, a] = next();
    if constexpr (F::pairs) q[k] = vreinterpretq_f64_f32(quarters<F>(s, *a));
    else q[k] = vreinterpretq_f64_f32(quarters_by_16<F>(s, *a));
  }
  auto halves = [](float64x2_t x, float64x2_t y) {
    return vaddq_f32(vreinterpretq_f32_f64(vzip1q_f64(x, y)), vreinterpretq_f32_f64(vzip2q_f64(x, y)));
  };
  return vpaddq_f32(halves(q[0], q[1]), halves(q[2], q[3]));
}

// The bytes of the `n`th 256 elements of a row; where the row ends inside, a copy with zeros behind.
template <class F>
inline const uint8_t* chunk_of(const uint8_t* row, int n, int cols, uint8_t* copy) {
  constexpr int size = 256 / F::block * F::bytes;
  const uint8_t* s = row + size_t(n) * size;
  if (F::wide || cols - 256 * n >= 256) return s;
  __builtin_memset(copy, 0, size);
  __builtin_memcpy(copy, s, size_t(cols - 256 * n) / F::block * F::bytes);
  return copy;
}

// What will be read in a quarter of a microsecond. Beyond the weights' end this does nothing.
template <int SIZE>
inline __attribute__((always_inline)) void ask_ahead(const uint8_t* s) {
#if defined(__APPLE__)
  constexpr int line = 128;
#else
  constexpr int line = 64;
#endif
#pragma GCC unroll 32
  for (int i = 0; i < SIZE; i += line) __builtin_prefetch(s + 2048 + i, 0, 0);
}

struct Meeting {  // 256 weights and their activations
  const uint8_t* s;
  const Activation* a;
};

template <class F>
void stream(const Job& job, int token, int begin, int end) {
  constexpr int size = 256 / F::block * F::bytes, rows_at_once = 4;
  const int chunks = (job.cols + 255) / 256;
  float* values = reinterpret_cast<float*>(scratch((size_t(rows_at_once) * chunks + 4) * sizeof(float)));
  uint8_t last[size];
  float* out = job.out[token];
  const char* const first = reinterpret_cast<const char*>(&job.at(token, 0));
  const char* a = first;
  const uint8_t* s = job.weights + size_t(begin) * job.row_bytes;
  int n = 0;
  auto next = [&] {
    const Meeting now = {F::wide ? s : chunk_of<F>(s, n, job.cols, last), reinterpret_cast<const Activation*>(a)};
    a += job.block_stride;
    if (F::wide) s += size;
    if (++n == chunks) {
      n = 0;
      a = first;
      if (!F::wide) s += job.row_bytes;
    }
    return now;
  };
  for (int r = begin; r < end; r += rows_at_once) {
    const int rows = end - r < rows_at_once ? end - r : rows_at_once, count = rows * chunks;
    for (int i = 0; i < count; i += 4) {
      const int here = count - i < 4 ? count - i : 4;
      ask_ahead<4 * size>(F::wide ? s : s + n * size);
      if constexpr (F::wide) vst1q_f32(values + i, wide_values<F>(here, next));
      else vst1q_f32(values + i, narrow_values<F>(here, next));
    }
    float acc[rows_at_once] = {};
    const char* at = first;
    for (int c = 0; c < chunks; c++, at += job.block_stride) {
      const float d = reinterpret_cast<const Activation*>(at)->d[0];
#pragma GCC unroll 4
      for (int k = 0; k < rows_at_once; k++) {  // those behind the last row are nobody's
        const float value = values[k * chunks + c];
        acc[k] = F::wide ? __builtin_fmaf(d, value, acc[k]) : acc[k] + value;
      }
    }
    for (int k = 0; k < rows; k++) out[r + k] = acc[k];
  }
}

// The loops of the portable level, and the order of sums that all levels keep to: exact integer sums, then floats in
// one fixed order, so that a token's bits depend neither on the tokens beside it nor on threads nor on the instruction
// set. A level states group_sums<BIAS>(q, a, to): the 16 sums of (q - BIAS) * y of 16 each. `groups.h` has
// scaled_sum<F>(codes, a): the sum of scale * (q - bias) * y; low_sum(codes, a): the sum of low * y; and
// sums_of_32<BIAS>(q, a, to): the 8 sums of 32 each.
//
// The order, everywhere. Wide types, a block: value = d * sum, then value = value - m * low, fused;
// acc = acc + dy * value, fused. Narrow types, 256 elements: v[j] = d[j] * sum[j] (+ m[j] * low[j], fused);
// q[i] = dy[2i] * v[2i], then + dy[2i + 1] * v[2i + 1], fused; acc = acc + ((q[0] + q[2]) + (q[1] + q[3])).
// NVFP4 has two scales for 32 elements: v[j] = d[2j] * sum[2j] + d[2j + 1] * sum[2j + 1]. Both products are exact (a
// scale has four bits, a sum of 16 fifteen), so that one rounding is left and it matters not which of them is fused.

template <class F>
inline float wide_value(const Codes& c, const Activation& a) {
  float value = c.d[0] * float(scaled_sum<F>(c, a));
  return F::lows ? __builtin_fmaf(-c.m[0], float(low_sum(c, a)), value) : value;
}

template <class F>
inline float narrow_value(const Codes& c, const Activation& a) {
  float v[8], q[4];
  if constexpr (F::pairs) {
    alignas(32) int32_t dot[8];
    sums_of_32<F::bias>(c.q, a, dot);
    for (int j = 0; j < 8; j++) {
      v[j] = c.d[j] * float(dot[j]);
      if (F::lows) v[j] = __builtin_fmaf(c.m[j], float(a.sum32[j]), v[j]);
    }
  } else {
    alignas(64) int32_t dot[16];
    group_sums<F::bias>(c.q, a, dot);
    for (int j = 0; j < 8; j++)
      v[j] = __builtin_fmaf(c.d[2 * j + 1], float(dot[2 * j + 1]), c.d[2 * j] * float(dot[2 * j]));
  }
  for (int i = 0; i < 4; i++)
    q[i] = __builtin_fmaf(a.d[place(2 * i + 1)], v[2 * i + 1], a.d[place(2 * i)] * v[2 * i]);
  return (q[0] + q[2]) + (q[1] + q[3]);
}

template <class F>
inline float add_block(float acc, const Codes& c, const Activation& a) {
  if constexpr (F::wide) return __builtin_fmaf(a.d[0], wide_value<F>(c, a), acc);
  else return acc + narrow_value<F>(c, a);
}

// The `n`th 256 elements of a row; a row of a narrow type may end inside, and the rest weighs nothing.
template <class F>
inline void unpack(const uint8_t* row, int n, int cols, Codes& c) {
  if constexpr (F::wide) {
    F::unpack(row + size_t(n) * F::bytes, c);
  } else if constexpr (!F::pairs) {
    int blocks = (cols - 256 * n) / 64;
    for (int g = 4 * blocks; g < 16; g++) c.d[g] = 0.0f;
    const uint8_t* s = row + size_t(n) * 4 * F::bytes;
    for (int j = 0; j < blocks && j < 4; j++) F::unpack(s + j * F::bytes, c.q + 64 * j, c.d + 4 * j);
  } else {
    int blocks = (cols - 256 * n) / 32;
    for (int j = 0; j < 8; j++) {
      if (j < blocks) F::unpack(row + (size_t(n) * 8 + j) * F::bytes, c.q + 32 * j, c.d[j], c.m[j]);
      else c.d[j] = c.m[j] = 0.0f;
    }
  }
}

constexpr int tokens_at_once = 128;

template <class F>
void quantized_rows(const Job& job) {
  const int chunks = (job.cols + 255) / 256;
  Codes c = {};
  float sum[tokens_at_once];
  for (int from = 0; from < job.tokens; from += tokens_at_once) {
    int tokens = job.tokens - from < tokens_at_once ? job.tokens - from : tokens_at_once;
    for (int r = job.begin; r < job.end; r++) {
      const uint8_t* row = job.weights + size_t(r) * job.row_bytes;
      for (int t = 0; t < tokens; t++) sum[t] = 0.0f;
      for (int n = 0; n < chunks; n++) {
        unpack<F>(row, n, job.cols, c);
        for (int t = 0; t < tokens; t++) sum[t] = add_block<F>(sum[t], c, job.at(from + t, n));
      }
      for (int t = 0; t < tokens; t++) job.out[from + t][r] = sum[t];
    }
  }
}

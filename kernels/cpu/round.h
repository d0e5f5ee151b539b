// Activations as the kernels see them: 8-bit blocks of 256 or 32, f16, bf16, or unchanged.

inline float round_bf16(float x) {
  uint32_t bits = bits_of(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return x;
  return as_float((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u);
}

inline float round_f16(float x) {
  uint32_t bits = bits_of(x), sign = bits & 0x80000000u, size = bits & 0x7fffffff;
  if (size > 0x7f800000) return x;
  if (size < 0x38800000) {  // below the smallest normal: steps of 2^-24
    float magic = 0x1.8p-1f;  // its last bit is 2^-24
    return as_float(sign | bits_of((as_float(size) + magic) - magic));
  }
  size = (size + 0xfff + ((size >> 13) & 1)) & ~0x1fffu;
  return as_float(sign | (size > 0x477fe000 ? 0x7f800000 : size));
}

template <int N>
inline float round_block(const float* x, int8_t* q) {
  uint32_t most = 0;
  for (int i = 0; i < N; i++) {
    uint32_t size = bits_of(x[i]) & 0x7fffffff;  // ordered as the floats are
    most = size > most ? size : most;
  }
  float d = as_float(most) / 127.0f;
  if (most >= 0x7f800000 || d == 0.0f) {
    for (int i = 0; i < N; i++) q[i] = 0;
    return d == 0.0f ? d : __builtin_nanf("");
  }
  const float magic = 12582912.0f;  // 1.5 * 2^23: the sum is rounded to an integer, halves to even
  for (int i = 0; i < N; i++) {
    int code = int((x[i] / d + magic) - magic);
    code = code > 127 ? 127 : code;
    q[i] = int8_t(code < -127 ? -127 : code);
  }
  return d;
}

#ifndef AVX512_LEVEL
inline void add_up(Activation& a) {
  a.size16 = 0;
  for (int g = 0; g < 16; g++) {
    int sum = 0, size = 0;
    for (int i = 0; i < 16; i++) sum += a.q[16 * g + i];
    for (int i = 0; i < 16; i++) size += a.q[16 * g + i] < 0 ? -a.q[16 * g + i] : a.q[16 * g + i];
    a.sum16[g] = int16_t(sum);
    a.low16[g] = -128 * sum;
    a.size16 = int16_t(size) > a.size16 ? int16_t(size) : a.size16;
  }
  for (int j = 0; j < 8; j++) {
    int sum = a.sum16[2 * j] + a.sum16[2 * j + 1];
    a.sum32[j] = int16_t(sum);
    a.low32[place(j)] = -128 * sum;
  }
}
#endif

void round_row(const float* x, int n, Rounding kind, char* to, size_t block_stride) {
  if (kind == Rounding::none || kind == Rounding::f16 || kind == Rounding::bf16) {
    float* y = reinterpret_cast<float*>(to);
    if (kind == Rounding::none) __builtin_memcpy(y, x, size_t(n) * 4);
    else if (kind == Rounding::f16)
      for (int i = 0; i < n; i++) y[i] = round_f16(x[i]);
    else
      for (int i = 0; i < n; i++) y[i] = round_bf16(x[i]);
    for (int i = n; i % 16; i++) y[i] = 0.0f;
    return;
  }
  for (int from = 0; from < n; from += 256, to += block_stride) {
    Activation& a = *reinterpret_cast<Activation*>(to);
    if (kind == Rounding::narrow && n - from < 256) __builtin_memset(a.q, 0, sizeof a.q);
    for (float& d : a.d) d = 0.0f;
    if (kind == Rounding::wide) {
      a.d[0] = round_block<256>(x + from, a.q);
    } else {
      for (int j = 0; j < 8 && from + 32 * j < n; j++)
        a.d[place(j)] = round_block<32>(x + from + 32 * j, a.q + 32 * j);
    }
    add_up(a);
  }
}

// Each block layout in registers: 256 codes in sixteen registers of one group each, or 32 in two.

inline uint8x16_t byte16(uint8_t value) { return vdupq_n_u8(value); }
inline int16x8_t eight_of(uint64_t bytes) { return vmovl_s8(vreinterpret_s8_u64(vdup_n_u64(bytes))); }

struct Scales {  // of 16 groups, or in the first register of 8 pairs
  int16x8_t scale[2], low[2];
};

// BIAS is still to be taken off the codes; SHIFTED codes of groups 2 k and 2 k + 1 of either half are 4^k times too
// large, but for k = 3.
template <int BIAS = 0, bool SHIFTED = false>
struct Block {
  static constexpr bool shifted = SHIFTED;
  static constexpr int bias = BIAS;
  static constexpr float factor = 1.0f;  // of d
  const uint8_t* s;
  explicit Block(const uint8_t* block) : s(block) {}
};

template <class F>
struct Registers;

template <>
struct Registers<Q2_K> : Block<0, true> {
  using Block::Block;
  uint32_t d() const { return load<uint32_t>(s + 80); }
  Scales scales() const {
    const uint8x16_t x = vld1q_u8(s);
    const int8x16_t scale = vreinterpretq_s8_u8(vandq_u8(x, byte16(15))), low = vreinterpretq_s8_u8(vshrq_n_u8(x, 4));
    return {{vmovl_s8(vget_low_s8(scale)), vmovl_high_s8(scale)}, {vmovl_s8(vget_low_s8(low)), vmovl_high_s8(low)}};
  }
  void codes(uint8x16_t* q) const {
    for (int i = 0; i < 4; i++, q += i == 2 ? 7 : 1) {
      const uint8x16_t x = vld1q_u8(s + 16 + 16 * i);
      q[0] = vandq_u8(x, byte16(3));
      q[2] = vandq_u8(x, byte16(3 << 2));
      q[4] = vandq_u8(x, byte16(3 << 4));
      q[6] = vshrq_n_u8(x, 6);
    }
  }
};
template <>
struct Registers<Q3_K> : Block<4, true> {
  using Block::Block;
  uint32_t d() const { return load<uint16_t>(s + 108); }
  Scales scales() const {
    const uint64_t low = load<uint64_t>(s + 96), high = load<uint32_t>(s + 104), m = 0x0303030303030303;
    const uint64_t a = (high | high << 30) & m, b = (high >> 4 | high << 26) & m, nibble = 0x0f0f0f0f0f0f0f0f;
    const int16x8_t most = vdupq_n_s16(32);
    const int16x8_t even = eight_of((low & nibble) | a << 4), odd = eight_of((low >> 4 & nibble) | b << 4);
    return {{vsubq_s16(even, most), vsubq_s16(odd, most)}, {}};
  }
  void codes(uint8x16_t* q) const {
    for (int i = 0; i < 4; i++, q += i == 2 ? 7 : 1) {
      const uint8x16_t x = vld1q_u8(s + 32 + 16 * i), all = vld1q_u8(s + 16 * (i % 2));
      const uint8x16_t h = i < 2 ? all : vshrq_n_u8(all, 4), next = vshrq_n_u8(h, 1);
      q[0] = vandq_u8(vsliq_n_u8(x, h, 2), byte16(7));
      q[2] = vandq_u8(vsliq_n_u8(x, next, 4), byte16(7 << 2));
      q[4] = vandq_u8(vsliq_n_u8(x, vshrq_n_u8(h, 2), 6), byte16(7 << 4));
      q[6] = vandq_u8(vsriq_n_u8(next, x, 6), byte16(7));
    }
  }
};
inline Scales six_bits(const uint8_t* s) {
  const uint64_t low = load<uint64_t>(s), high = load<uint32_t>(s + 8), m = 0x0f0f0f0f;
  const uint64_t first = low & 0x3f3f3f3f3f3f3f3f, top = low >> 2 & 0x3030303030303030;
  const uint64_t scale = (first & 0xffffffff) | ((high & m) | (top & 0xffffffff)) << 32;
  const uint64_t least = first >> 32 | ((high >> 4 & m) | top >> 32) << 32;
  return {{eight_of(scale)}, {eight_of(least)}};
}
template <>
struct Registers<Q4_K> : Block<> {
  using Block::Block;
  uint32_t d() const { return load<uint32_t>(s); }
  Scales scales() const { return six_bits(s + 4); }
  void codes(uint8x16_t* q) const {
    for (int i = 0; i < 8; i++) {
      const uint8x16_t x = vld1q_u8(s + 16 + 16 * i);
      q[i / 2 * 4 + i % 2] = vandq_u8(x, byte16(15));
      q[i / 2 * 4 + i % 2 + 2] = vshrq_n_u8(x, 4);
    }
  }
};
template <>
struct Registers<Q5_K> : Block<> {
  using Block::Block;
  uint32_t d() const { return load<uint32_t>(s); }
  Scales scales() const { return six_bits(s + 4); }
  void codes(uint8x16_t* q) const {
    for (int i = 0; i < 2; i++) {
      uint8x16_t h = vld1q_u8(s + 16 + 16 * i);
      for (int c = 0; c < 4; c++, h = vshrq_n_u8(h, 2)) {
        const uint8x16_t x = vld1q_u8(s + 48 + 32 * c + 16 * i);
        q[4 * c + i] = vandq_u8(vsliq_n_u8(x, h, 4), byte16(31));
        q[4 * c + i + 2] = vandq_u8(vsriq_n_u8(vshlq_n_u8(h, 3), x, 4), byte16(31));
      }
    }
  }
};
template <>
struct Registers<Q6_K> : Block<32> {
  using Block::Block;
  uint32_t d() const { return load<uint16_t>(s + 208); }
  Scales scales() const {
    const int8x16_t x = vld1q_s8((const int8_t*)s + 192);
    return {{vmovl_s8(vget_low_s8(x)), vmovl_high_s8(x)}, {}};
  }
  void codes(uint8x16_t* q) const {
    for (int i = 0; i < 4; i++, q += i == 2 ? 7 : 1) {
      const uint8_t* at = s + 64 * (i / 2) + 16 * (i % 2);
      const uint8x16_t x = vld1q_u8(at), y = vld1q_u8(at + 32), h = vld1q_u8(s + 128 + 16 * i), next = vshrq_n_u8(h, 2);
      q[0] = vandq_u8(vsliq_n_u8(x, h, 4), byte16(63));
      q[2] = vandq_u8(vsliq_n_u8(y, next, 4), byte16(63));
      q[4] = vandq_u8(vsriq_n_u8(h, x, 4), byte16(63));
      q[6] = vandq_u8(vsriq_n_u8(next, y, 4), byte16(63));
    }
  }
};

// Sixteen values less their bias, and what the nibbles of 16 bytes stand for in them.
template <uint8_t BIAS>
inline void values_of(const uint8_t* values, const uint8_t* s, uint8x16_t* q) {
  const uint8x16_t table = vsubq_u8(vld1q_u8(values), byte16(BIAS)), x = vld1q_u8(s);
  q[0] = vqtbl1q_u8(table, vandq_u8(x, byte16(15)));
  q[1] = vqtbl1q_u8(table, vshrq_n_u8(x, 4));
}
template <>
struct Registers<IQ4_XS> : Block<> {
  using Block::Block;
  uint32_t d() const { return load<uint16_t>(s); }
  Scales scales() const {
    const uint8x8_t x = vreinterpret_u8_u32(vdup_n_u32(load<uint32_t>(s + 4)));
    const int16x8_t low = vreinterpretq_s16_u16(vmovl_u8(vzip1_u8(vand_u8(x, vdup_n_u8(15)), vshr_n_u8(x, 4))));
    const int16x8_t right = {0, -2, -4, -6, -8, -10, -12, -14};
    const int16x8_t high = vreinterpretq_s16_u16(vshlq_u16(vdupq_n_u16(load<uint16_t>(s + 2)), right));
    const int16x8_t six = vandq_s16(vsliq_n_s16(low, high, 4), vdupq_n_s16(63));
    return {{vsubq_s16(six, vdupq_n_s16(32))}, {}};
  }
  void codes(uint8x16_t* q) const {
    for (int j = 0; j < 8; j++) values_of<128>(iq4_values, s + 8 + 16 * j, q + 2 * j);
  }
};

inline Scales ones() { return {{vdupq_n_s16(1)}, {}}; }
template <>
struct Registers<TQ2_0> : Block<1> {
  using Block::Block;
  uint32_t d() const { return load<uint16_t>(s + 64); }
  Scales scales() const { return ones(); }
  void codes(uint8x16_t* q) const {
    for (int i = 0; i < 4; i++, q += i == 2 ? 7 : 1) {
      const uint8x16_t x = vld1q_u8(s + 16 * i);
      q[0] = vandq_u8(x, byte16(3));
      q[2] = vandq_u8(vshrq_n_u8(x, 2), byte16(3));
      q[4] = vandq_u8(vshrq_n_u8(x, 4), byte16(3));
      q[6] = vshrq_n_u8(x, 6);
    }
  }
};
template <>
struct Registers<TQ1_0> : Block<> {
  using Block::Block;
  uint32_t d() const { return load<uint16_t>(s + 52); }
  Scales scales() const { return ones(); }
  static uint8x16_t digit(uint8x16_t x) {  // x * 3 >> 8, less 1
    return vsubq_u8(vsubq_u8(byte16(255), vcgeq_u8(x, byte16(86))), vcgeq_u8(x, byte16(171)));
  }
  void codes(uint8x16_t* q) const {
    for (int i = 0; i < 3; i++) {
      uint8x16_t x = vld1q_u8(s + 16 * i);
      for (int n = 0; n < 5; n++, x = vmulq_u8(x, byte16(3))) q[i < 2 ? 2 * n + i : 10 + n] = digit(x);
    }
    const uint8x16_t power = {1, 1, 1, 1, 3, 3, 3, 3, 9, 9, 9, 9, 27, 27, 27, 27};
    q[15] = digit(vmulq_u8(vreinterpretq_u8_u32(vdupq_n_u32(load<uint32_t>(s + 48))), power));
  }
};

// Narrow formats: 32 codes of a block; `numbers` is what blocks at, at + 2, at + 4 and at + 6 say at byte AT.
template <int BYTES, int AT>
inline float32x4_t four_halves(const uint8_t* s) {
  const uint16x4_t x = {load<uint16_t>(s + AT), load<uint16_t>(s + AT + 2 * BYTES), load<uint16_t>(s + AT + 4 * BYTES),
                        load<uint16_t>(s + AT + 6 * BYTES)};
  return vcvt_f32_f16(vreinterpret_f16_u16(x));
}
template <class F, int BIAS>
struct Thirty2 : Block<BIAS> {
  using Block<BIAS>::Block;
  static float32x4_t d(const uint8_t* s) { return four_halves<F::bytes, 0>(s); }
  static float32x4_t m(const uint8_t* s) { return four_halves<F::bytes, 2>(s); }
};
inline void nibbles_of(const uint8_t* s, uint8x16_t* q) {
  const uint8x16_t x = vld1q_u8(s);
  q[0] = vandq_u8(x, byte16(15));
  q[1] = vshrq_n_u8(x, 4);
}
// The nibbles of 16 bytes below bits 4 to 7, which are set where a bit of `fifth` is.
inline void nibbles_below(const uint8_t* s, uint32_t fifth, uint8x16_t* q) {
  const uint8x16_t x = vld1q_u8(s), bits = vreinterpretq_u8_u32(vdupq_n_u32(fifth));
  const uint8x16_t first = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
  const uint8x16_t bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  q[1] = vsriq_n_u8(vtstq_u8(vqtbl1q_u8(bits, vorrq_u8(first, byte16(2))), bit), x, 4);
  q[0] = vsliq_n_u8(x, vtstq_u8(vqtbl1q_u8(bits, first), bit), 4);
}

template <>
struct Registers<Q4_0> : Thirty2<Q4_0, 8> {
  using Thirty2::Thirty2;
  void codes(uint8x16_t* q) const { nibbles_of(s + 2, q); }
};
template <>
struct Registers<Q4_1> : Thirty2<Q4_1, 0> {
  using Thirty2::Thirty2;
  void codes(uint8x16_t* q) const { nibbles_of(s + 4, q); }
};
template <>
struct Registers<Q5_0> : Thirty2<Q5_0, 0> {
  using Thirty2::Thirty2;
  // 16 less where the bit is not set.
  void codes(uint8x16_t* q) const { nibbles_below(s + 6, ~load<uint32_t>(s + 2), q); }
};
template <>
struct Registers<Q5_1> : Thirty2<Q5_1, 0> {
  using Thirty2::Thirty2;
  void codes(uint8x16_t* q) const {
    nibbles_below(s + 8, load<uint32_t>(s + 4), q);
    for (int k = 0; k < 2; k++) q[k] = vandq_u8(q[k], byte16(31));
  }
};
template <>
struct Registers<Q8_0> : Thirty2<Q8_0, 0> {
  using Thirty2::Thirty2;
  void codes(uint8x16_t* q) const {
    q[0] = vld1q_u8(s + 2);
    q[1] = vld1q_u8(s + 18);
  }
};
template <>
struct Registers<IQ4_NL> : Thirty2<IQ4_NL, 0> {
  using Thirty2::Thirty2;
  void codes(uint8x16_t* q) const { values_of<128>(iq4_values, s + 2, q); }
};
// Of NVFP4 32 elements, and what four blocks of 64 say of their groups g.
template <>
struct Registers<NVFP4> : Block<> {
  using Block::Block;
  void codes(uint8x16_t* q) const {
    uint8x16_t x[2];
    values_of<12>(fp4_values, s, x);
    const uint64x2_t low = vreinterpretq_u64_u8(x[0]), high = vreinterpretq_u64_u8(x[1]);
    q[0] = vreinterpretq_u8_u64(vzip1q_u64(low, high));
    q[1] = vreinterpretq_u8_u64(vzip2q_u64(low, high));
  }
  static const uint8_t* at(const uint8_t* s, int j) { return s + j / 2 * NVFP4::bytes + 4 + j % 2 * 16; }
  static float32x4_t d(const uint8_t* s, int g) {
    constexpr int step = NVFP4::bytes;
    const uint16x4_t x = {s[g], s[g + step], s[g + 2 * step], s[g + 3 * step]}, seven = vdup_n_u16(127);
    const uint16x4_t half = vbic_u16(vshl_n_u16(vand_u16(x, seven), 7), vceq_u16(x, seven));
    return vmulq_n_f32(vcvt_f32_f16(vreinterpret_f16_u16(half)), 128.0f);
  }
};
template <>
struct Registers<MXFP4> : Thirty2<MXFP4, 0> {
  using Thirty2::Thirty2;
  void codes(uint8x16_t* q) const { values_of<12>(fp4_values, s + 1, q); }
  static float32x4_t d(const uint8_t* s) {
    constexpr int step = 2 * MXFP4::bytes;
    const uint32x4_t x = {s[0], s[step], s[2 * step], s[3 * step]}, two = vdupq_n_u32(2);
    const uint32x4_t usual = vshlq_n_u32(vsubq_u32(x, vdupq_n_u32(1)), 23);
    const uint32x4_t tiny = vshlq_u32(vdupq_n_u32(0x00200000), vreinterpretq_s32_u32(x));
    return vreinterpretq_f32_u32(vbslq_u32(vcltq_u32(x, two), tiny, usual));
  }
};

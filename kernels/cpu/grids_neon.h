// The grid formats in registers: two points of eight bytes or four of four make sixteen codes, negated where a sign is
// set.

inline const uint8_t* even_mask(uint32_t seven) { return sign_masks[grids.signs[seven & 127]]; }
inline uint8x16_t eights(const uint8_t* a, const uint8_t* b) { return vcombine_u8(vld1_u8(a), vld1_u8(b)); }
inline uint8x16_t negated(uint8x16_t x, const uint8_t* a, const uint8_t* b) {  // where the masks at a and b are set
  const uint8x16_t mask = eights(a, b);
  return vsubq_u8(veorq_u8(x, mask), mask);
}
inline uint8x16_t fours(const uint8_t* grid, int a, int b, int c, int d) {
  return vreinterpretq_u8_u32((uint32x4_t){load<uint32_t>(grid + 4 * a), load<uint32_t>(grid + 4 * b),
                                           load<uint32_t>(grid + 4 * c), load<uint32_t>(grid + 4 * d)});
}
inline int16x8_t odd(int16x8_t x) { return vaddq_s16(vaddq_s16(x, x), vdupq_n_s16(1)); }  // 2 x + 1
inline Scales odd_nibbles(uint8x8_t x) {
  const uint8x8_t low = vand_u8(x, vdup_n_u8(15)), high = vshr_n_u8(x, 4);
  auto wide = [](uint8x8_t x) { return odd(vreinterpretq_s16_u16(vmovl_u8(x))); };
  return {{wide(vzip1_u8(low, high)), wide(vzip2_u8(low, high))}, {}};
}
// 2 n + 1 of the highest nibbles of eight words STEP bytes apart.
template <int STEP>
inline Scales odd_tops(const uint8_t* s) {
  uint32_t word[8];
  for (int j = 0; j < 8; j++) word[j] = load<uint32_t>(s + STEP * j);
  const uint16x8_t top = vshrn_high_n_u32(vshrn_n_u32(vld1q_u32(word), 16), vld1q_u32(word + 4), 16);
  return {{odd(vreinterpretq_s16_u16(vshrq_n_u16(top, 12)))}, {}};
}

struct Eighth : Block<> {
  static constexpr float factor = 0.125f;
  using Block::Block;
};
template <>
struct Registers<IQ2_XXS> : Eighth {
  using Eighth::Eighth;
  uint32_t d() const { return load<uint16_t>(s); }
  Scales scales() const { return odd_tops<8>(s + 6); }
  void codes(uint8x16_t* q) const {
    for (int i = 0; i < 16; i++) {
      const uint8_t* index = s + 2 + 4 * (i & ~1) + i % 2 * 2;
      const uint32_t signs = load<uint32_t>(s + 6 + 4 * (i & ~1)) >> (14 * (i % 2));
      const uint8_t *a = grids.iq2_xxs + 8 * index[0], *b = grids.iq2_xxs + 8 * index[1];
      q[i] = negated(eights(a, b), even_mask(signs), even_mask(signs >> 7));
    }
  }
};
template <>
struct Registers<IQ2_XS> : Eighth {
  using Eighth::Eighth;
  uint32_t d() const { return load<uint16_t>(s); }
  Scales scales() const { return odd_nibbles(vld1_u8(s + 66)); }
  void codes(uint8x16_t* q) const {
    for (int g = 0; g < 16; g++) {
      const uint32_t a = load<uint16_t>(s + 2 + 4 * g), b = load<uint16_t>(s + 4 + 4 * g);
      const auto points = eights(grids.iq2_xs + 8 * (a & 511), grids.iq2_xs + 8 * (b & 511));
      q[g] = negated(points, even_mask(a >> 9), even_mask(b >> 9));
    }
  }
};
template <>
struct Registers<IQ2_S> : Eighth {
  using Eighth::Eighth;
  uint32_t d() const { return load<uint16_t>(s); }
  Scales scales() const { return odd_nibbles(vld1_u8(s + 74)); }
  void codes(uint8x16_t* q) const {
    for (int g = 0; g < 16; g++) {
      const uint32_t high = uint32_t(s[66 + g / 2]) << 8 >> (4 * (g % 2));
      const uint32_t a = s[2 + 2 * g] | (high & 0x300), b = s[3 + 2 * g] | (high >> 2 & 0x300);
      const auto points = eights(grids.iq2_s + 8 * a, grids.iq2_s + 8 * b);
      q[g] = negated(points, sign_masks[s[34 + 2 * g]], sign_masks[s[35 + 2 * g]]);
    }
  }
};
template <>
struct Registers<IQ3_XXS> : Block<> {
  static constexpr float factor = 0.25f;
  using Block::Block;
  uint32_t d() const { return load<uint16_t>(s); }
  Scales scales() const { return odd_tops<4>(s + 66); }
  void codes(uint8x16_t* q) const {
    for (int g = 0; g < 16; g++) {
      const uint8_t* index = s + 2 + 4 * g;
      const uint32_t signs = load<uint32_t>(s + 66 + 4 * (g / 2)) >> (14 * (g % 2));
      const auto points = fours(grids.iq3_xxs, index[0], index[1], index[2], index[3]);
      q[g] = negated(points, even_mask(signs), even_mask(signs >> 7));
    }
  }
};
template <>
struct Registers<IQ3_S> : Block<> {
  using Block::Block;
  uint32_t d() const { return load<uint16_t>(s); }
  Scales scales() const {
    const uint8x8_t four = vreinterpret_u8_u32(vdup_n_u32(load<uint32_t>(s + 106)));
    return {{odd_nibbles(four).scale[0]}, {}};
  }
  void codes(uint8x16_t* q) const {
    for (int g = 0; g < 16; g++) {
      const uint8_t* index = s + 2 + 4 * g;
      const uint32_t high = uint32_t(s[66 + g / 2]) << 8 >> (4 * (g % 2));
      q[g] = negated(fours(grids.iq3_s, int(index[0] | (high & 256)), int(index[1] | (high >> 1 & 256)),
                           int(index[2] | (high >> 2 & 256)), int(index[3] | (high >> 3 & 256))),
                     sign_masks[s[74 + 2 * g]], sign_masks[s[75 + 2 * g]]);
    }
  }
};

// IQ1: eighths of points that are stored + 1, one eighth less where `down` is set, else more.
inline uint8x16_t moved(uint8x16_t points, uint32_t down_a, uint32_t down_b) {
  const uint8x8_t a = vdup_n_u8(uint8_t(down_a ? 9 : 7)), b = vdup_n_u8(uint8_t(down_b ? 9 : 7));
  return vsubq_u8(vshlq_n_u8(points, 3), vcombine_u8(a, b));
}
template <>
struct Registers<IQ1_S> : Eighth {
  using Eighth::Eighth;
  uint32_t d() const { return load<uint16_t>(s); }
  Scales scales() const {
    const uint16x8_t high = vld1q_u16(reinterpret_cast<const uint16_t*>(s + 34));
    return {{odd(vreinterpretq_s16_u16(vandq_u16(vshrq_n_u16(high, 12), vdupq_n_u16(7))))}, {}};
  }
  void codes(uint8x16_t* q) const {
    for (int g = 0; g < 16; g++) {
      const uint32_t word = load<uint16_t>(s + 34 + 2 * (g / 2));
      const uint32_t high = word << 8 >> (6 * (g % 2)), down = word & 0x8000;
      const uint32_t a = s[2 + 2 * g] | (high & 0x700), b = s[3 + 2 * g] | (high >> 3 & 0x700);
      q[g] = moved(eights(grids.iq1 + 8 * a, grids.iq1 + 8 * b), down, down);
    }
  }
};
template <>
struct Registers<IQ1_M> : Eighth {
  using Eighth::Eighth;
  uint32_t word(int n) const { return load<uint16_t>(s + 48 + 2 * n); }
  uint32_t d() const { return word(0) >> 12 | word(1) >> 12 << 4 | word(2) >> 12 << 8 | word(3) >> 12 << 12; }
  Scales scales() const {
    const int16x8_t right = {0, -3, -6, -9, 0, -3, -6, -9};
    auto eight = [&](int n) {
      const uint16x8_t both = vcombine_u16(vdup_n_u16(uint16_t(word(n))), vdup_n_u16(uint16_t(word(n + 1))));
      return odd(vreinterpretq_s16_u16(vandq_u16(vshlq_u16(both, right), vdupq_n_u16(7))));
    };
    return {{eight(0), eight(2)}, {}};
  }
  void codes(uint8x16_t* q) const {
    for (int g = 0; g < 16; g++) {
      const uint32_t high = s[32 + g], a = s[2 * g] | (high & 7) << 8, b = s[2 * g + 1] | (high >> 4 & 7) << 8;
      q[g] = moved(eights(grids.iq1 + 8 * a, grids.iq1 + 8 * b), high & 8, high & 128);
    }
  }
};

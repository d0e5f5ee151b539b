// Every block layout in plain C++: a block of weights as unsigned codes, integer scales and float scales. The portable
// level computes with it; the other levels that include it read blocks in registers of their own and take sizes and
// biases from it.

// The bit fields of `formats.py`'s Plane, N elements; ORed in, shifted, where they lie above other bits.
template <int BITS, int RUN, int N, int UP = 0>
inline void plane(const uint8_t* s, uint8_t* q) {
  constexpr int lanes = 8 / BITS;
  for (int chunk = 0; chunk < N / (RUN * lanes); chunk++)
    for (int lane = 0; lane < lanes; lane++)
      for (int i = 0; i < RUN; i++) {
        uint8_t bits = uint8_t(((s[chunk * RUN + i] >> (lane * BITS)) & ((1 << BITS) - 1)) << UP);
        uint8_t& to = q[(chunk * lanes + lane) * RUN + i];
        to = UP ? uint8_t(to | bits) : bits;
      }
}

inline void five_bits(const uint8_t* high, uint8_t* q) {
  uint32_t bits = load<uint32_t>(high);
  for (int byte = 0; byte < 4; byte++) {
    const uint8_t* mask = sign_masks[(bits >> (8 * byte)) & 255];
    for (int i = 0; i < 8; i++) q[8 * byte + i] |= mask[i] & 16;
  }
}

template <int N>
inline void look_up(const uint8_t* table, uint8_t* q) {
  for (int i = 0; i < N; i++) q[i] = table[q[i]];
}

// Narrow types: 32 elements a block.
template <int BYTES, int BIAS, bool LOWS = false>
struct Narrow {
  static constexpr int block = 32, bytes = BYTES, bias = BIAS;
  static constexpr bool lows = LOWS, wide = false, pairs = true;
};

struct Q4_0 : Narrow<18, 8> {
  static void unpack(const uint8_t* s, uint8_t* q, float& d, float&) {
    d = half(s);
    plane<4, 16, 32>(s + 2, q);
  }
};
struct Q4_1 : Narrow<20, 0, true> {
  static void unpack(const uint8_t* s, uint8_t* q, float& d, float& m) {
    d = half(s);
    m = half(s + 2);
    plane<4, 16, 32>(s + 4, q);
  }
};
struct Q5_0 : Narrow<22, 16> {
  static void unpack(const uint8_t* s, uint8_t* q, float& d, float&) {
    d = half(s);
    plane<4, 16, 32>(s + 6, q);
    five_bits(s + 2, q);
  }
};
struct Q5_1 : Narrow<24, 0, true> {
  static void unpack(const uint8_t* s, uint8_t* q, float& d, float& m) {
    d = half(s);
    m = half(s + 2);
    plane<4, 16, 32>(s + 8, q);
    five_bits(s + 4, q);
  }
};
struct Q8_0 : Narrow<34, 128> {
  static void unpack(const uint8_t* s, uint8_t* q, float& d, float&) {
    d = half(s);
    for (int i = 0; i < 32; i++) q[i] = s[2 + i] ^ 128;
  }
};
struct IQ4_NL : Narrow<18, 128> {
  static void unpack(const uint8_t* s, uint8_t* q, float& d, float&) {
    d = half(s);
    plane<4, 16, 32>(s + 2, q);
    look_up<32>(iq4_values, q);
  }
};
struct MXFP4 : Narrow<17, 12> {
  static void unpack(const uint8_t* s, uint8_t* q, float& d, float&) {
    d = e8m0(s[0]);
    plane<4, 16, 32>(s + 1, q);
    look_up<32>(fp4_values, q);
  }
};
struct NVFP4 {  // like narrow types, but that 16 elements share a scale, and 64 a block
  static constexpr int block = 64, bytes = 36, bias = 12;
  static constexpr bool lows = false, wide = false, pairs = false;
  static void unpack(const uint8_t* s, uint8_t* q, float* d) {
    for (int g = 0; g < 4; g++) d[g] = ue4m3(s[g]);
    plane<4, 8, 64>(s + 4, q);
    look_up<64>(fp4_values, q);
  }
};

// Wide types: 256 elements a block.
template <int BYTES, int BIAS, bool LOWS = false, bool PAIRS = false>
struct Wide {
  static constexpr int block = 256, bytes = BYTES, bias = BIAS;
  static constexpr bool lows = LOWS, wide = true;
  static constexpr bool pairs = PAIRS;  // 32 elements share a scale, not 16
};

inline void both(Codes& c, int group, int scale) { c.scale[2 * group] = c.scale[2 * group + 1] = scale; }

inline void six_bit_scales(const uint8_t* s, Codes& c) {
  for (int j = 0; j < 4; j++) {
    both(c, j, s[j] & 63);
    both(c, j + 4, (s[j + 8] & 15) | (s[j] >> 6) << 4);
    c.low[2 * j] = c.low[2 * j + 1] = s[j + 4] & 63;
    c.low[2 * j + 8] = c.low[2 * j + 9] = s[j + 8] >> 4 | (s[j + 4] >> 6) << 4;
  }
}

struct Q2_K : Wide<84, 0, true> {
  static void unpack(const uint8_t* s, Codes& c) {
    for (int g = 0; g < 16; g++) c.scale[g] = s[g] & 15, c.low[g] = s[g] >> 4;
    plane<2, 32, 256>(s + 16, c.q);
    c.d[0] = half(s + 80);
    c.m[0] = half(s + 82);
  }
};
struct Q3_K : Wide<110, 4> {
  static void unpack(const uint8_t* s, Codes& c) {
    plane<2, 32, 256>(s + 32, c.q);
    plane<1, 32, 256, 2>(s, c.q);
    const uint8_t* packed = s + 96;
    for (int g = 0; g < 16; g++) {
      int low = g < 8 ? packed[g] & 15 : packed[g - 8] >> 4;
      c.scale[g] = (low | ((packed[8 + g % 4] >> (2 * (g / 4))) & 3) << 4) - 32;
    }
    c.d[0] = half(s + 108);
  }
};
struct Q4_K : Wide<144, 0, true, true> {
  static void unpack(const uint8_t* s, Codes& c) {
    c.d[0] = half(s);
    c.m[0] = half(s + 2);
    six_bit_scales(s + 4, c);
    plane<4, 32, 256>(s + 16, c.q);
  }
};
struct Q5_K : Wide<176, 0, true, true> {
  static void unpack(const uint8_t* s, Codes& c) {
    c.d[0] = half(s);
    c.m[0] = half(s + 2);
    six_bit_scales(s + 4, c);
    plane<4, 32, 256>(s + 48, c.q);
    plane<1, 32, 256, 4>(s + 16, c.q);
  }
};
struct Q6_K : Wide<210, 32> {
  static void unpack(const uint8_t* s, Codes& c) {
    plane<4, 64, 256>(s, c.q);
    plane<2, 32, 256, 4>(s + 128, c.q);
    for (int g = 0; g < 16; g++) c.scale[g] = int8_t(s[192 + g]);
    c.d[0] = half(s + 208);
  }
};
struct IQ4_XS : Wide<136, 128, false, true> {
  static void unpack(const uint8_t* s, Codes& c) {
    c.d[0] = half(s);
    uint32_t high = load<uint16_t>(s + 2), low = load<uint32_t>(s + 4);
    for (int j = 0; j < 8; j++) both(c, j, int((low >> (4 * j) & 15) | (high >> (2 * j) & 3) << 4) - 32);
    plane<4, 16, 256>(s + 8, c.q);
    look_up<256>(iq4_values, c.q);
  }
};
struct TQ2_0 : Wide<66, 1, false, true> {
  static void unpack(const uint8_t* s, Codes& c) {
    for (int& scale : c.scale) scale = 1;
    plane<2, 32, 256>(s, c.q);
    c.d[0] = half(s + 64);
  }
};
struct TQ1_0 : Wide<54, 1, false, true> {
  template <int RUN, int DIGITS>
  static void digits(const uint8_t* s, uint8_t* q) {
    constexpr uint8_t power[5] = {1, 3, 9, 27, 81};
    for (int n = 0; n < DIGITS; n++)
      for (int i = 0; i < RUN; i++) q[n * RUN + i] = uint8_t(uint16_t(uint8_t(s[i] * power[n])) * 3 >> 8);
  }
  static void unpack(const uint8_t* s, Codes& c) {
    for (int& scale : c.scale) scale = 1;
    digits<32, 5>(s, c.q);
    digits<16, 5>(s + 32, c.q + 160);
    digits<4, 4>(s + 48, c.q + 240);
    c.d[0] = half(s + 52);
  }
};

// Grid types: N bytes of a point, negated where its sign bit is set, plus the bias.
template <int BIAS, int N>
inline void point(const uint8_t* grid, const uint8_t* mask, uint8_t* q) {
  for (int i = 0; i < N; i++) q[i] = uint8_t(((grid[i] ^ mask[i]) - mask[i]) + BIAS);
}

inline const uint8_t* even_signs(uint32_t seven) { return sign_masks[grids.signs[seven & 127]]; }

struct IQ2_XXS : Wide<66, 64, false, true> {
  static void unpack(const uint8_t* s, Codes& c) {
    c.d[0] = half(s) * 0.125f;
    for (int j = 0; j < 8; j++) {
      const uint8_t* index = s + 2 + 8 * j;
      uint32_t word = load<uint32_t>(index + 4);
      both(c, j, int(2 * (word >> 28) + 1));
      for (int k = 0; k < 4; k++)
        point<bias, 8>(grids.iq2_xxs + 8 * index[k], even_signs(word >> (7 * k)), c.q + 32 * j + 8 * k);
    }
  }
};
struct IQ2_XS : Wide<74, 64> {
  static void unpack(const uint8_t* s, Codes& c) {
    c.d[0] = half(s) * 0.125f;
    for (int g = 0; g < 16; g++) c.scale[g] = 2 * (s[66 + g / 2] >> (4 * (g % 2)) & 15) + 1;
    for (int k = 0; k < 32; k++) {
      uint32_t word = load<uint16_t>(s + 2 + 2 * k);
      point<bias, 8>(grids.iq2_xs + 8 * (word & 511), even_signs(word >> 9), c.q + 8 * k);
    }
  }
};
struct IQ2_S : Wide<82, 64> {
  static void unpack(const uint8_t* s, Codes& c) {
    c.d[0] = half(s) * 0.125f;
    for (int g = 0; g < 16; g++) c.scale[g] = 2 * (s[74 + g / 2] >> (4 * (g % 2)) & 15) + 1;
    for (int k = 0; k < 32; k++) {
      int index = s[2 + k] | (s[66 + k / 4] >> (2 * (k % 4)) & 3) << 8;
      point<bias, 8>(grids.iq2_s + 8 * index, sign_masks[s[34 + k]], c.q + 8 * k);
    }
  }
};
struct IQ3_XXS : Wide<98, 64, false, true> {
  static void unpack(const uint8_t* s, Codes& c) {
    c.d[0] = half(s) * 0.25f;
    for (int j = 0; j < 8; j++) {
      uint32_t word = load<uint32_t>(s + 66 + 4 * j);
      both(c, j, int(2 * (word >> 28) + 1));
      for (int k = 0; k < 8; k++)
        point<bias, 4>(grids.iq3_xxs + 4 * s[2 + 8 * j + k], even_signs(word >> (7 * (k / 2))) + 4 * (k % 2),
                       c.q + 32 * j + 4 * k);
    }
  }
};
struct IQ3_S : Wide<110, 16, false, true> {
  static void unpack(const uint8_t* s, Codes& c) {
    c.d[0] = half(s);
    for (int j = 0; j < 8; j++) both(c, j, 2 * (s[106 + j / 2] >> (4 * (j % 2)) & 15) + 1);
    for (int k = 0; k < 64; k++) {
      int index = s[2 + k] | (s[66 + k / 8] >> (k % 8) & 1) << 8;
      point<bias, 4>(grids.iq3_s + 4 * index, sign_masks[s[74 + k / 2]] + 4 * (k % 2), c.q + 4 * k);
    }
  }
};

// IQ1: points are -1, 0, 1 (stored + 1), moved by an eighth; codes count eighths.
inline void moved_point(int index, bool down, uint8_t* q) {
  const uint8_t* grid = grids.iq1 + 8 * index;
  uint8_t shift = down ? 0 : 2;  // bias 9: 9 + 8 (g - 1) +- 1
  for (int i = 0; i < 8; i++) q[i] = uint8_t(8 * grid[i] + shift);
}

struct IQ1_S : Wide<50, 9, false, true> {
  static void unpack(const uint8_t* s, Codes& c) {
    c.d[0] = half(s) * 0.125f;
    for (int j = 0; j < 8; j++) {
      uint32_t high = load<uint16_t>(s + 34 + 2 * j);
      both(c, j, int(2 * (high >> 12 & 7) + 1));
      for (int k = 0; k < 4; k++)
        moved_point(int(s[2 + 4 * j + k] | (high >> (3 * k) & 7) << 8), high & 0x8000, c.q + 32 * j + 8 * k);
    }
  }
};
struct IQ1_M : Wide<56, 9> {
  static void unpack(const uint8_t* s, Codes& c) {
    uint32_t d = 0;
    for (int n = 0; n < 4; n++) {
      uint32_t word = load<uint16_t>(s + 48 + 2 * n);
      d |= (word >> 12) << (4 * n);
      for (int k = 0; k < 4; k++) c.scale[4 * n + k] = int(2 * (word >> (3 * k) & 7) + 1);
    }
    c.d[0] = half(uint16_t(d)) * 0.125f;
    for (int k = 0; k < 32; k++) {
      int high = s[32 + k / 2] >> (4 * (k % 2)) & 15;
      moved_point(s[k] | (high & 7) << 8, high & 8, c.q + 8 * k);
    }
  }
};

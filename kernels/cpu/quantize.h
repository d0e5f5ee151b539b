// Weights to codes: a weighted least-squares search of each block's scale and minimum.
#pragma once
#include <cstdint>
#include <vector>

namespace gmoe {

struct Scheme {  // what a quant type can say about a block
  int block, group;         // elements a block, elements that share a scale
  bool minimum;             // value = d * scale * code - dmin * min; else d * scale * point
  bool below_zero;          // that minimum may only lower
  int scale_low, scale_high;  // whole scales of the groups; 0, 0: none, the block has `d` alone
  int min_high;             // whole minima are 0..min_high
  bool power;               // d is a power of two, stored as its exponent + 128
  std::vector<float> points;  // ascending values that a code can stand for; codes index them
};

struct Encoded {  // [blocks], but for codes [blocks][block] and scales, mins [blocks][groups]
  float *d, *dmin;
  int16_t *scales, *mins;
  uint8_t* codes;
};

// x [blocks][block]; weight [cols] or null, cols a multiple of block: how much an error in that column counts.
void quantize(const Scheme&, const float* x, int64_t blocks, const float* weight, int cols, const Encoded&,
              int threads);

}  // namespace gmoe

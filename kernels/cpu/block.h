// What the cores exchange: 256 weights as small unsigned codes, 256 activations as signed bytes.
#pragma once
#include <cstddef>
#include <cstdint>

namespace gmoe {

// Wide types (blocks of 256): (q - bias) * scale[i / 16] * d[0] - low[i / 16] * m[0].
// Narrow types (blocks of 32): (q - bias) * d[i / 32] + m[i / 32].
struct alignas(64) Codes {
  uint8_t q[256];
  int32_t scale[16];
  int32_t low[16];
  float d[8];
  float m[8];
};

// x = q * d[0] for wide types, q * d[i / 32] for narrow ones; sum: of each 16 q.
struct alignas(64) Activation {
  int8_t q[256];
  int32_t sum[16];
  float d[8];
};

// Rows [begin, end) of a matrix times `tokens` rows of activations; the result of token t, row r is out[t][r].
struct Job {
  const uint8_t* weights;
  size_t row_bytes;
  int cols;
  int begin, end;
  const void* const* x;  // a token: Activation[ceil(cols / 256)], or float[cols] for plain types
  int tokens;
  float* const* out;
};

enum class Rounding { wide, narrow, f16, bf16, none };

struct Format {
  const char* name;
  int block;  // elements
  int bytes;  // a block
  Rounding rounding;
  void (*rows)(const Job&);
};

// One CPU level's kernels; `round` fills an activation row (Activation[] or float[]) from floats.
struct Level {
  const char* name;
  bool (*here)();
  const Format* formats;
  int count;
  void (*round)(const float* x, int n, Rounding kind, void* to);
};

const Level& portable();
const Level& avx2();
const Level& avx512();

// The grid types' points as bytes and the sign patterns, handed over once from Python.
struct Grids {
  const uint8_t *iq1, *iq2_xxs, *iq2_xs, *iq2_s, *iq3_xxs, *iq3_s;  // iq1: values + 1
  const uint8_t* signs;                                              // [128]
};
extern Grids grids;
extern uint8_t sign_masks[256][8];  // bit j of the index -> byte j is 0 or 255

}  // namespace gmoe

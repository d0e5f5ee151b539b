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

// Where the jth 32 elements of 256 stand among the eight: first the even ones, then the odd ones.
constexpr int place(int j) { return j / 2 + 4 * (j % 2); }

// x = q * d[0] for wide types, q * d[place(i / 32)] for narrow ones.
struct alignas(64) Activation {
  int8_t q[256];
  int32_t low16[16];  // -128 times the sum of each 16 q
  int32_t low32[8];   // -128 times the sum of each 32 q, by place
  float d[8];
  int16_t sum16[16];
  int16_t sum32[8];
};

// Rows [begin, end) of a matrix times `tokens` rows of activations; the result of token t, row r is out[t][r].
// Where there are several tokens, the Activations of one block of all of them lie one behind the other, and three more
// that nobody uses may be read behind the last.
struct Job {
  const uint8_t* weights;
  size_t row_bytes;
  int cols;
  int begin, end;
  const char* x;  // Activations, or floats padded with zeros to whole sixteens for plain types
  size_t token_stride, block_stride;  // bytes from a token to the next, from 256 elements to the next
  int tokens;
  float* const* out;
  const uint8_t* stop;  // the end of the matrix: what comes next is read ahead up to here

  const Activation& at(int token, int block) const {
    return *reinterpret_cast<const Activation*>(x + token * token_stride + block * block_stride);
  }
  const float* floats(int token) const { return reinterpret_cast<const float*>(x + token * token_stride); }
};

enum class Rounding { wide, narrow, f16, bf16, none };
enum class Gate { swiglu, geglu, reglu, relu2, swiglu_oai };

struct Format {
  const char* name;
  int block;  // elements
  int bytes;  // a block
  Rounding rounding;
  void (*rows)(const Job&);
};

// One CPU level's kernels; `round` fills an activation row (Activations `block_stride` apart, or floats) from floats.
struct Level {
  const char* name;
  bool (*here)();
  const Format* formats;
  int count;
  void (*round)(const float* x, int n, Rounding kind, char* to, size_t block_stride);
  void (*gate)(Gate kind, const float* gate, float* up, int n);  // up = the activation of both; relu2 has no gate
  uint64_t (*read)(const uint8_t* data, size_t size);  // the sum of its words: the least that a product could do
};

const Level& portable();
const Level& avx2();
const Level& avxvnni();
const Level& avx512();
const Level& neon();
const Level& neon_i8mm();

// This thread's memory for a call of a kernel, 64-byte aligned; the next call of `scratch` may move it.
char* scratch(size_t bytes);

// The grid types' points as bytes and the sign patterns, handed over once from Python.
struct Grids {
  const uint8_t *iq1, *iq2_xxs, *iq2_xs, *iq2_s, *iq3_xxs, *iq3_s;  // iq1: values + 1
  const uint8_t* signs;                                              // [128]
};
extern Grids grids;
extern uint8_t sign_masks[256][8];  // bit j of the index -> byte j is 0 or 255

}  // namespace gmoe

// What the cores exchange: 256 weights as small unsigned codes, 256 activations as signed bytes.
#pragma once
#include <cstddef>
#include <cstdint>

namespace gmoe {

// Wide types (blocks of 256): (q - bias) * scale[i / 16] * d[0] - low[i / 16] * m[0].
// Narrow types (blocks of 32): (q - bias) * d[i / 32] + m[i / 32]; NVFP4 (blocks of 64): (q - bias) * d[i / 16].
struct alignas(64) Codes {
  uint8_t q[256];
  int32_t scale[16];
  int32_t low[16];
  float d[16];
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
  int16_t size16;  // the largest sum of 16 sizes
};

// Eight tokens side by side in one block of a wide type, for levels that multiply them as `winograd512.h` says.
struct alignas(64) Eight {
  struct {
    int32_t start[8];     // what the sum of this scale starts from
    int8_t q[8][8][4];    // [column of four][token]
  } part[8];
  int16_t sum[4][8][2];   // [pair of sums of 32][token]
  float d[8];
  uint8_t first[8];       // 0, or the last Far of the token, counted from 1
  int32_t far;            // in the first of up to 16: how many Fars they have, or -1: more than are kept
  bool small;             // the sums of a scale fit in 16 bits
};

// What four neighbours of a token have in excess of what Eight holds.
struct Far {
  int8_t rest[4];
  int32_t start;  // of their product
  uint8_t column;
  bool follows;  // the Far before it is of the same token
};
constexpr int far_of_eight = 16, most_far = 255;  // as many are kept for each Eight, and for all
constexpr size_t eight_bytes = sizeof(Eight) + far_of_eight * sizeof(Far);

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
  const uint8_t* stop;  // the end of the matrix
  const uint8_t* next = nullptr;  // rows that this thread probably takes afterwards, if known
  const char* eights = nullptr;  // if not null, the tokens of each block once more: Eights, then their Fars
  size_t eights_stride = 0;      // bytes from 256 elements to the next
  bool past = false;  // results are written past the caches where the level can; rows of `out` are 64-byte aligned

  const Activation& at(int token, int block) const {
    return *reinterpret_cast<const Activation*>(x + token * token_stride + block * block_stride);
  }
  const Eight* eights_at(int token, int block) const {
    return reinterpret_cast<const Eight*>(eights + size_t(block) * eights_stride) + token / 8;
  }
  const Far* fars_at(int token, int block) const {  // of 16 Eights
    return reinterpret_cast<const Far*>(eights_at((tokens + 7) / 8 * 8, block)) + token / 8 * far_of_eight;
  }
  const float* floats(int token) const { return reinterpret_cast<const float*>(x + token * token_stride); }
};

enum class Rounding { wide, narrow, f16, bf16, none };
enum class Curve { swiglu, geglu, reglu, relu2, swiglu_oai, swiglu_within, swiglu_under, situ };
struct Gate {
  Curve curve;
  float most;     // the factors of swiglu_within, gate and up of swiglu_under, stay below it, and up above its negative
  float most_up;  // of situ, whose gate tends to `most`, what up tends to; 0: it is as it is
};

struct Format {
  const char* name;
  int block;  // elements
  int bytes;  // a block
  Rounding rounding;
  void (*rows)(const Job&);
  bool eights;  // wants `Job.eights` where there are at least eight tokens
};

// One CPU level's kernels; `round` fills an activation row (Activations `block_stride` apart, or floats) from floats.
struct Level {
  const char* name;
  bool (*here)();
  const Format* formats;
  int count;
  void (*round)(const float* x, int n, Rounding kind, char* to, size_t block_stride);
  void (*gate)(Gate kind, const float* gate, float* up, int n);  // up = the activation of both; relu2 has no gate
  void (*add)(float* to, float weight, const float* from, int n);  // to = to + weight * from
  uint64_t (*read)(const uint8_t* data, size_t size);  // the sum of its words: the least that a product could do
  // The Eights and Fars of up to 128 tokens' Activations of one block; null if no format wants them.
  void (*side_by_side)(const Activation* a, int tokens, Eight* to, Far* far);
};

extern const Level portable, avx2, avxvnni, avx512, amx, neon, neon_i8mm;

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

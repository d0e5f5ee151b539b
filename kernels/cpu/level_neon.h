// What the levels of 64-bit ARM CPUs share: all but the products of many tokens.
#define NEON_LEVEL

#include "bits.h"
#include "round.h"
#include "gates.h"
#include "unpack.h"

struct Sixteen {
  float32x4_t v[4];
};
inline Sixteen zeros() { return {{vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)}}; }
inline Sixteen sixteen(const float* p) {
  return {{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}};
}
inline Sixteen fused(const Sixteen& a, const Sixteen& b, Sixteen c) {
  for (int i = 0; i < 4; i++) c.v[i] = vfmaq_f32(c.v[i], a.v[i], b.v[i]);
  return c;
}

#include "codes_neon.h"
#include "grids_neon.h"
#include "stream_neon.h"

struct alignas(64) Tile {
  int8_t q[16 * 256];  // less the bias, in the order of the products
  int32_t scale[16][16];
  int8_t low[4][64];  // [groups / 4][row][4]
  float d[8][16], m[8][16];  // narrow formats: by place; of NVFP4 the scales of the first 16 and of the last
};

#if defined(NEON_I8MM)
#include "products_i8mm.h"
#else
#include "products_neon.h"
#endif
#include "ahead.h"
#include "tile_neon.h"
#include "plain.h"
#include "table.h"

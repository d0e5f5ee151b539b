// The level of 64-bit ARM CPUs with dot products.
#include <arm_neon.h>

#if defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include "block.h"

#define NEON_LEVEL

namespace gmoe {
namespace {

#include "bits.h"
#include "round.h"
#include "gates.h"
#include "unpack.h"

struct Sixteen {
  float32x4_t v[4];
};
inline Sixteen zeros() { return {{vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)}}; }
inline Sixteen sixteen(const float* p) { return {{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}}; }
inline Sixteen fused(const Sixteen& a, const Sixteen& b, Sixteen c) {
  for (int i = 0; i < 4; i++) c.v[i] = vfmaq_f32(c.v[i], a.v[i], b.v[i]);
  return c;
}

#include "codes_neon.h"
#include "grids_neon.h"
#include "stream_neon.h"
#include "tile_neon.h"
#include "plain.h"
#include "table.h"

bool here() {
#if defined(__linux__)
  return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
  return true;  // every ARM Mac has them
#endif
}

}  // namespace

const Level& neon() {
  static const Level level = {"neon", here, formats, sizeof formats / sizeof *formats, round_row, gate_rows, read_words};
  return level;
}

}  // namespace gmoe

// The level of 64-bit ARM CPUs with dot products.
#include <arm_neon.h>

#if defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include "block.h"

namespace gmoe {
namespace {

#include "bits.h"
#include "round.h"
#include "gates.h"
#include "unpack.h"

// A code less its bias fits a signed byte in every format.
template <int BIAS>
inline void group_sums(const uint8_t* q, const Activation& a, int32_t* to) {
  for (int g = 0; g < 16; g += 4) {
    int32x4_t dot[4];
    for (int k = 0; k < 4; k++) {
      int8x16_t code = vreinterpretq_s8_u8(vsubq_u8(vld1q_u8(q + 16 * (g + k)), vdupq_n_u8(BIAS)));
      dot[k] = vdotq_s32(vdupq_n_s32(0), code, vld1q_s8(a.q + 16 * (g + k)));
    }
    vst1q_s32(to + g, vpaddq_s32(vpaddq_s32(dot[0], dot[1]), vpaddq_s32(dot[2], dot[3])));
  }
}

struct Sixteen {
  float32x4_t v[4];
};
inline Sixteen zeros() { return {{vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)}}; }
inline Sixteen sixteen(const float* p) { return {{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}}; }
inline Sixteen fused(const Sixteen& a, const Sixteen& b, Sixteen c) {
  for (int i = 0; i < 4; i++) c.v[i] = vfmaq_f32(c.v[i], a.v[i], b.v[i]);
  return c;
}

#include "groups.h"
#include "core.h"
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

// The level of any CPU: plain C++.
#include "block.h"
#include "cpu_features.h"

namespace gmoe {
namespace {

#include "bits.h"
#include "round.h"
#include "gates.h"
#include "unpack.h"

template <int BIAS>
inline void group_sums(const uint8_t* q, const Activation& a, int32_t* to) {
  for (int g = 0; g < 16; g++) {
    int32_t sum = 0;
    for (int i = 0; i < 16; i++) sum += (int32_t(q[16 * g + i]) - BIAS) * a.q[16 * g + i];
    to[g] = sum;
  }
}

struct Sixteen {
  float v[16];
};
inline Sixteen zeros() { return {}; }
inline Sixteen sixteen(const float* p) { return load<Sixteen>(p); }
inline Sixteen fused(const Sixteen& a, const Sixteen& b, Sixteen c) {
  for (int i = 0; i < 16; i++) c.v[i] = __builtin_fmaf(a.v[i], b.v[i], c.v[i]);
  return c;
}

#include "groups.h"
#include "core.h"
#include "plain.h"
#include "table.h"

}  // namespace

constexpr Level portable = level_of("portable", has_all);

}  // namespace gmoe

// The level of any CPU: plain C++.
#include "block.h"

namespace gmoe {
namespace {

#include "unpack.h"

template <int BIAS>
inline void group_sums(const uint8_t* q, const Activation& a, int32_t* to) {
  for (int g = 0; g < 16; g++) {
    int32_t sum = 0;
    for (int i = 0; i < 16; i++) sum += (int32_t(q[16 * g + i]) - BIAS) * a.q[16 * g + i];
    to[g] = sum;
  }
}

#include "core.h"

template <class F>
int tiled_rows(const Job& job, int, int) {
  return job.begin;
}

bool here() { return true; }

}  // namespace

const Level& portable() {
  static const Level level = {"portable", here, formats, sizeof formats / sizeof *formats, round_row};
  return level;
}

}  // namespace gmoe

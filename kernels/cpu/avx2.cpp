// The level of CPUs with AVX2, F16C and FMA.
#include <immintrin.h>

#include "block.h"
#include "features.h"

namespace gmoe {
namespace {

#include "level256.h"

bool here() { return __builtin_cpu_supports("avx2") && has_f16c() && __builtin_cpu_supports("fma"); }

}  // namespace

const Level& avx2() {
  static const Level level = level_of("avx2", here);
  return level;
}

}  // namespace gmoe

// The step's row kernels and attention: AVX2 with FMA and F16C.
#include <immintrin.h>
#include <math.h>

#include <cstring>

#include "step.h"
#include "features.h"

#define AVX256_LEVEL

namespace gmoe {
namespace {

const char* const level_name = "avx2";

bool here() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

#include "step_level.h"

}  // namespace

const Step& step_avx2() { return step; }

}  // namespace gmoe

// The step's row kernels and attention: AVX-512.
#include <immintrin.h>
#include <math.h>

#include <cstring>

#include "step.h"

#define AVX512_LEVEL

namespace gmoe {
namespace {

const char* const level_name = "avx512";

bool here() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

#include "step_level.h"

}  // namespace

const Step& step_avx512() { return step; }

}  // namespace gmoe

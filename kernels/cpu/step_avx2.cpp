// The step's row kernels and attention: AVX2 with FMA and F16C.
#include <immintrin.h>
#include <math.h>

#include <cstring>

#include "step.h"
#include "cpu_features.h"

#define AVX256_LEVEL

namespace gmoe {
namespace {

#include "step_level.h"

}  // namespace

constexpr Step step_avx2 = step_of("avx2", has_avx2);

}  // namespace gmoe

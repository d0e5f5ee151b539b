// The step's row kernels and attention: AVX-512.
#include <immintrin.h>
#include <math.h>

#include <cstring>

#include "cpu_features.h"
#include "step.h"

#define AVX512_LEVEL

namespace gmoe {
namespace {

#include "step_level.h"

}  // namespace

constexpr Step step_avx512 = step_of("avx512", has_avx512_step);

}  // namespace gmoe

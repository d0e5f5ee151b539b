// The level of CPUs with AVX2, F16C and FMA.
#include <immintrin.h>

#include "block.h"
#include "cpu_features.h"

namespace gmoe {
namespace {

#include "level256.h"

}  // namespace

constexpr Level avx2 = level_of("avx2", has_avx2);

}  // namespace gmoe

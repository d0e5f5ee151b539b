// The level of CPUs with AVX2 and VNNI, without AVX-512 (Alder Lake and later).
#include <immintrin.h>

#include "block.h"
#include "features.h"

namespace gmoe {
namespace {

#include "level256.h"

bool here() {
#if defined(__AVX512VNNI__)  // so built to be checked on CPUs that have the operation in AVX-512's form only
  return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl");
#else
  return __builtin_cpu_supports("avx2") && has_f16c() && __builtin_cpu_supports("fma") &&
         has_avxvnni();
#endif
}

}  // namespace

const Level& avxvnni() {
  static const Level level = level_of("avxvnni", here);
  return level;
}

}  // namespace gmoe

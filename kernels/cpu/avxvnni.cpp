// The level of CPUs with AVX2 and VNNI, without AVX-512 (Alder Lake and later).
#include <cpuid.h>
#include <immintrin.h>

#include "block.h"

namespace gmoe {
namespace {

#include "level256.h"

bool here() {
#if defined(__AVX512VNNI__)  // so built to be checked on CPUs that have the operation in AVX-512's form only
  return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl");
#else
  unsigned a, b, c, d;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c") && __builtin_cpu_supports("fma") &&
         __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1 << 4);
#endif
}

}  // namespace

const Level& avxvnni() {
  static const Level level = {"avxvnni", here, formats, sizeof formats / sizeof *formats, round_row, gate_rows, read_words};
  return level;
}

}  // namespace gmoe

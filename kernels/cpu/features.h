// What `__builtin_cpu_supports` of some compilers does not know. Static: no code is shared between instruction sets.
#pragma once
#include <cpuid.h>

namespace gmoe {

static inline bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & 1u << 29);
}

static inline bool has_avxvnni() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4);
}

}  // namespace gmoe

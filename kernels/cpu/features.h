// What `__builtin_cpu_supports` of some compilers does not know. Static: no code is shared between instruction sets.
#pragma once
#include <cpuid.h>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace gmoe {

static inline bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & 1u << 29);
}

static inline bool has_avxvnni() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4);
}

#if defined(__linux__)
// Whether there are products of bytes by AMX, and the system lets this process use its registers, which it asks for.
static inline bool may_use_amx() {
  constexpr long request = 0x1023, tile_data = 18;
  unsigned a, b, c, d;
  const unsigned tiles = 1u << 24 | 1u << 25;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & tiles) != tiles) return false;
  return syscall(SYS_arch_prctl, request, tile_data) == 0;
}
#endif

}  // namespace gmoe

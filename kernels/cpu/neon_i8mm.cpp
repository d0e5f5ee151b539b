// The level of 64-bit ARM CPUs with products of matrices of bytes (Armv8.6; Apple M2, Graviton3, Snapdragon X).
#include <arm_neon.h>

#if defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include "block.h"

#define NEON_I8MM

namespace gmoe {
namespace {

#include "level_neon.h"

bool here() {
#if defined(__linux__)
  constexpr unsigned long i8mm = 1 << 13;  // HWCAP2_I8MM, which older headers lack
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) && (getauxval(AT_HWCAP2) & i8mm);
#elif defined(__APPLE__)
  int has = 0;
  size_t size = sizeof has;
  return sysctlbyname("hw.optional.arm.FEAT_I8MM", &has, &size, nullptr, 0) == 0 && has;
#else
  return false;
#endif
}

}  // namespace

const Level& neon_i8mm() {
  static const Level level = level_of("neon_i8mm", here);
  return level;
}

}  // namespace gmoe

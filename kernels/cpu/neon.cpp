// The level of 64-bit ARM CPUs with dot products.
#include <arm_neon.h>

#if defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include "block.h"

namespace gmoe {
namespace {

#include "level_neon.h"

bool here() {
#if defined(__linux__)
  return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
  return true;  // every ARM Mac has them
#endif
}

}  // namespace

const Level& neon() {
  static const Level level = level_of("neon", here);
  return level;
}

}  // namespace gmoe

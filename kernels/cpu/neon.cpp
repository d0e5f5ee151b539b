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
  static const Level level = {"neon", here, formats, sizeof formats / sizeof *formats, round_row, gate_rows, read_words};
  return level;
}

}  // namespace gmoe

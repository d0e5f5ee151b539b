// The step's row kernels and attention: NEON, which every 64-bit ARM CPU has.
#include <arm_neon.h>
#include <math.h>

#include <cstring>

#include "step.h"

#define NEON_LANES

namespace gmoe {
namespace {

const char* const level_name = "neon";

bool here() { return true; }

#include "step_level.h"

}  // namespace

const Step& step_neon() { return step; }

}  // namespace gmoe

// The step's row kernels and attention: NEON, which every 64-bit ARM CPU has.
#include <arm_neon.h>
#include <math.h>

#include <cstring>

#include "cpu_features.h"
#include "step.h"

#define NEON_LANES

namespace gmoe {
namespace {

#include "step_level.h"

}  // namespace

constexpr Step step_neon = step_of("neon", has_all);

}  // namespace gmoe

// The step's row kernels and attention: Plain C++ for any CPU.
#include <math.h>

#include <cstring>

#include "cpu_features.h"
#include "step.h"

namespace gmoe {
namespace {

#include "step_level.h"

}  // namespace

constexpr Step step_portable = step_of("portable", has_all);

}  // namespace gmoe

// The step's row kernels and attention: Plain C++ for any CPU.
#include <math.h>

#include <cstring>

#include "step.h"

namespace gmoe {
namespace {

const char* const level_name = "portable";

bool here() {
  return true;
}

#include "step_level.h"

}  // namespace

const Step& step_portable() { return step; }

}  // namespace gmoe

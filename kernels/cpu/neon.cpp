// The level of 64-bit ARM CPUs with dot products.
#include <arm_neon.h>

#include "block.h"
#include "cpu_features.h"

namespace gmoe {
namespace {

#include "level_neon.h"

}  // namespace

constexpr Level neon = level_of("neon", has_dot_products);

}  // namespace gmoe

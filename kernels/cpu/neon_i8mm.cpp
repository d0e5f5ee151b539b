// The level of 64-bit ARM CPUs with products of matrices of bytes (Armv8.6; Apple M2, Graviton3, Snapdragon X).
#include <arm_neon.h>

#include "block.h"
#include "cpu_features.h"

#define NEON_I8MM

namespace gmoe {
namespace {

#include "level_neon.h"

}  // namespace

constexpr Level neon_i8mm = level_of("neon_i8mm", has_i8mm);

}  // namespace gmoe

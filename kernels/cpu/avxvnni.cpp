// The level of CPUs with AVX2 and VNNI, without AVX-512 (Alder Lake and later).
#include <immintrin.h>

#include "block.h"
#include "cpu_features.h"

namespace gmoe {
namespace {

#include "level256.h"

}  // namespace

#if defined(__AVX512VNNI__)  // so built to be checked on CPUs that have the operation in AVX-512's form only
constexpr Level avxvnni = level_of("avxvnni", has_avx512_vnni);
#elif defined(GMOE_VNNI_EMULATED)  // or in none
constexpr Level avxvnni = level_of("avxvnni", has_avx2);
#else
constexpr Level avxvnni = level_of("avxvnni", has_avxvnni);
#endif

}  // namespace gmoe

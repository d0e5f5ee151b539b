// The level of CPUs with AMX (Sapphire Rapids and later): AVX-512's loops, and tiles of many tokens by AMX.
#include <immintrin.h>

#include <cstring>
#include <optional>
#include <type_traits>

#include "block.h"
#include "cpu_features.h"

#define AVX512_LEVEL

namespace gmoe {
namespace {

#include "bits.h"
#include "add_up512.h"
#include "round.h"
#include "gates.h"

constexpr int zero_code = 0;  // of signed codes in a tile

#include "scales.h"
#include "codes512.h"
#include "grids512.h"
#include "pack512.h"
#include "asking.h"
#include "ahead.h"
#include "floats512.h"
#include "strips512.h"
#include "amx_tiles.h"
#include "tile_amx.h"

// Types that are multiplied by AVX-512's level alone.
struct F32;
struct F16;
struct BF16;
struct NVFP4 {
  static constexpr bool wide = false;
  static constexpr int block = 64, bytes = 36;
};

template <class F>
constexpr bool by_winograd = false;

extern const Format formats[];

// What AVX-512's level does with the type of ROWS; its table has the same order.
template <void (*ROWS)(const Job&)>
void usual_rows(const Job& job) {
  int i = 0;
  while (formats[i].rows != ROWS) i++;
  avx512.formats[i].rows(job);
}

template <class F>
void plain_rows(const Job& job) {
  usual_rows<plain_rows<F>>(job);
}

template <class F>
void quantized_rows(const Job& job) {
  constexpr bool tiled = !std::is_same_v<F, NVFP4>;
  if (!tiled || job.tokens < least_tokens) return usual_rows<quantized_rows<F>>(job);
  if constexpr (tiled) tiled_rows<F>(job);
  Job rest = job;
  rest.begin += (job.end - job.begin) / 16 * 16;
  if (rest.begin < rest.end) usual_rows<quantized_rows<F>>(rest);
}

#include "table.h"

}  // namespace

#if defined(GMOE_AMX_EMULATED)  // so built to be checked on CPUs that have only the rest
constexpr Level amx = level_of("amx", has_avx512);
#else
constexpr Level amx = level_of("amx", has_amx);
#endif

}  // namespace gmoe

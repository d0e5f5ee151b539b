// The level of CPUs with AMX (Sapphire Rapids and later): AVX-512's loops, and tiles of many tokens by AMX.
#include <immintrin.h>

#include <cstring>
#include <initializer_list>
#include <optional>
#include <type_traits>
#include <vector>

#include "block.h"
#include "features.h"

namespace gmoe {
namespace {

#include "bits.h"

constexpr int zero_code = 0;  // of signed codes in a tile

#include "scales.h"
#include "codes512.h"
#include "grids512.h"
#include "pack512.h"
#include "ahead.h"
#include "floats512.h"
#include "strips512.h"
#include "amx_tiles.h"
#include "tile_amx.h"

// What AVX-512's level does, which one token and rows behind the last whole tile are left to.
template <class F>
void (*usual_rows)(const Job&) = nullptr;

template <class F>
void rows(const Job& job) {
  if (job.tokens < least_tokens) return usual_rows<F>(job);
  tiled_rows<F>(job);
  Job rest = job;
  rest.begin += (job.end - job.begin) / 16 * 16;
  if (rest.begin < rest.end) usual_rows<F>(rest);
}

template <class... F>
struct Tiled {
  // The table of AVX-512's level, in which these types are tiled; `names` in the order of F.
  static std::vector<Format> formats(std::initializer_list<const char*> names) {
    std::vector<Format> all(avx512().formats, avx512().formats + avx512().count);
    const char* const* name = names.begin();
    (put<F>(all, *name++), ...);
    return all;
  }

 private:
  template <class One>
  static void put(std::vector<Format>& all, const char* name) {
    for (Format& format : all) {
      if (std::strcmp(format.name, name)) continue;
      usual_rows<One> = format.rows;
      format.rows = rows<One>;
      format.eights = false;
    }
  }
};

bool here() {
#if defined(GMOE_AMX_EMULATED)  // so built to be checked on CPUs that have only the rest
  return avx512().here();
#else
  return avx512().here() && may_use_amx();
#endif
}

Level made() {
  static const std::vector<Format> formats =
      Tiled<Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4, TQ1_0, TQ2_0, IQ1_S,
            IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S>::
          formats({"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS",
                   "MXFP4", "TQ1_0", "TQ2_0", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"});
  Level level = avx512();
  level.name = "amx";
  level.here = here;
  level.formats = formats.data();
  level.side_by_side = nullptr;
  return level;
}

}  // namespace

const Level& amx() {
  static const Level level = made();
  return level;
}

}  // namespace gmoe

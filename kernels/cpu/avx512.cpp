// The level of CPUs with AVX-512 VNNI, VBMI, BITALG and GFNI (Ice Lake, Zen 4 and later).
#include <immintrin.h>

#include "block.h"
#include "cpu_features.h"

#define AVX512_LEVEL  // the loops have registers of 64 bytes

namespace gmoe {
namespace {

#include "bits.h"
#include "add_up512.h"
#include "round.h"
#include "gates.h"

struct Sixteen {
  __m512 v;
};
inline Sixteen zeros() { return {_mm512_setzero_ps()}; }
inline Sixteen sixteen(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Sixteen fused(const Sixteen& a, const Sixteen& b, const Sixteen& c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }

constexpr int zero_code = 128;  // of signed codes in a tile, since `vpdpbusd` wants them unsigned

#include "scales.h"
#include "codes512.h"
#include "grids512.h"
#include "pairs512.h"
#include "sums512.h"
#include "ahead.h"
#include "pack512.h"
#include "nvfp4_512.h"
#include "asking.h"
#include "stream.h"
#include "stream512.h"
#include "winograd512.h"
#include "floats512.h"
#include "strips512.h"
#include "tile512.h"
#include "plain.h"
#include "table.h"

}  // namespace

constexpr Level avx512 = level_of("avx512", has_avx512, put_side_by_side);

}  // namespace gmoe

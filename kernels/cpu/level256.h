// What the levels with registers of 32 bytes are made of.
#define AVX256_LEVEL

#include "bits.h"
#include "round.h"
#include "gates.h"
#include "unpack.h"

struct Sixteen {
  __m256 low, high;
};
inline Sixteen zeros() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Sixteen sixteen(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline Sixteen fused(const Sixteen& a, const Sixteen& b, const Sixteen& c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}

#include "scales.h"
#include "vnni256.h"
#include "codes256.h"
#include "grids256.h"
#include "sums256.h"
#include "nvfp4_256.h"
#include "asking.h"
#include "stream.h"
#include "stream256.h"
#include "ahead.h"
#include "tile256.h"
#include "plain.h"
#include "table.h"

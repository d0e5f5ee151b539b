// The level of CPUs with AVX2, F16C and FMA.
#include <immintrin.h>

#include "block.h"

namespace gmoe {
namespace {

#include "bits.h"
#include "round.h"
#include "gates.h"
#include "unpack.h"

// Lanes 0-3 and 4-7 of each register add up to one group each.
template <int BIAS>
inline void group_sums(const uint8_t* q, const Activation& a, int32_t* to) {
  const __m256i ones = _mm256_set1_epi16(1), bias = _mm256_set1_epi8(char(128));
  __m256i part[8];
  for (int k = 0; k < 8; k++) {
    __m256i u = _mm256_load_si256((const __m256i*)(q + 32 * k)), v = _mm256_load_si256((const __m256i*)(a.q + 32 * k));
    if (BIAS == 128) {  // codes above 128 would overflow a pair of 16 bits: multiply by the sign and size of q - 128
      u = _mm256_xor_si256(u, bias);
      v = _mm256_sign_epi8(v, u);
      u = _mm256_abs_epi8(u);
    }
    part[k] = _mm256_madd_epi16(_mm256_maddubs_epi16(u, v), ones);
  }
  for (int k = 0; k < 8; k += 2) {
    __m256i sum = _mm256_hadd_epi32(part[k], part[k + 1]);
    sum = _mm256_hadd_epi32(sum, sum);  // a, b | a', b' in the two halves
    to[2 * k] = _mm256_extract_epi32(sum, 0);
    to[2 * k + 1] = _mm256_extract_epi32(sum, 4);
    to[2 * k + 2] = _mm256_extract_epi32(sum, 1);
    to[2 * k + 3] = _mm256_extract_epi32(sum, 5);
  }
  if (BIAS != 128)
    for (int g = 0; g < 16; g++) to[g] -= BIAS * a.sum16[g];
}

struct Sixteen {
  __m256 low, high;
};
inline Sixteen zeros() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Sixteen sixteen(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline Sixteen fused(const Sixteen& a, const Sixteen& b, const Sixteen& c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}

#include "core.h"
#include "plain.h"
#include "table.h"

bool here() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c") && __builtin_cpu_supports("fma"); }

}  // namespace

const Level& avx2() {
  static const Level level = {"avx2", here, formats, sizeof formats / sizeof *formats, round_row, gate_rows, read_words};
  return level;
}

}  // namespace gmoe

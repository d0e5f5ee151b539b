// The level of CPUs with AVX-512 VNNI.
#include <immintrin.h>

#include "block.h"

namespace gmoe {
namespace {

#include "unpack.h"

template <int BIAS>
inline void group_sums(const uint8_t* q, const Activation& a, int32_t* to) {
  const __m512i zero = _mm512_setzero_si512();
  __m512i dot[4];
  for (int k = 0; k < 4; k++)
    dot[k] = _mm512_dpbusd_epi32(zero, _mm512_load_si512(q + 64 * k), _mm512_load_si512(a.q + 64 * k));
  __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(dot[0], dot[1]), _mm512_unpackhi_epi32(dot[0], dot[1]));
  __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(dot[2], dot[3]), _mm512_unpackhi_epi32(dot[2], dot[3]));
  __m512i sum = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  // 128-bit part p holds group p of each of the four: a transpose puts group 4 k + p in its place
  sum = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), sum);
  if (BIAS) sum = _mm512_sub_epi32(sum, _mm512_mullo_epi32(_mm512_set1_epi32(BIAS), _mm512_load_si512(a.sum)));
  _mm512_store_si512(to, sum);
}

inline __m256i sums_of_8(const __m256i* x) {
  __m256i a[4];
  for (int i = 0; i < 4; i++)
    a[i] = _mm256_add_epi32(_mm256_unpacklo_epi32(x[2 * i], x[2 * i + 1]), _mm256_unpackhi_epi32(x[2 * i], x[2 * i + 1]));
  __m256i low = _mm256_add_epi32(_mm256_unpacklo_epi64(a[0], a[1]), _mm256_unpackhi_epi64(a[0], a[1]));
  __m256i high = _mm256_add_epi32(_mm256_unpacklo_epi64(a[2], a[3]), _mm256_unpackhi_epi64(a[2], a[3]));
  return _mm256_add_epi32(_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31));
}

#include "core.h"
#include "tile512.h"

bool here() {
  return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

}  // namespace

const Level& avx512() {
  static const Level level = {"avx512", here, formats, sizeof formats / sizeof *formats, round_row};
  return level;
}

}  // namespace gmoe

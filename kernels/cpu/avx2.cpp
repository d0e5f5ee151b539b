// The level of CPUs with AVX2, F16C and FMA.
#include <immintrin.h>

#include "block.h"

namespace gmoe {
namespace {

#include "bits.h"
#include "round.h"
#include "gates.h"
#include "unpack.h"

inline __m256i codes_at(const uint8_t* q) { return _mm256_load_si256((const __m256i*)q); }

// Pairs of products of 32 codes, in 16 bits; codes above 128 would overflow, so those of bias 128 are multiplied by the
// sign and the size of q - 128.
template <int BIAS>
inline __m256i pairs(const uint8_t* q, const int8_t* y) {
  __m256i u = codes_at(q), v = _mm256_load_si256((const __m256i*)y);
  if (BIAS == 128) {
    u = _mm256_xor_si256(u, _mm256_set1_epi8(char(128)));
    v = _mm256_sign_epi8(v, u);
    u = _mm256_abs_epi8(u);
  }
  return _mm256_maddubs_epi16(u, v);
}

inline __m256i sixteen_words(const int32_t* x) {
  __m256i packed = _mm256_packs_epi32(_mm256_load_si256((const __m256i*)x), _mm256_load_si256((const __m256i*)x + 1));
  return _mm256_permute4x64_epi64(packed, 0xd8);
}

inline int32_t added(__m256i x) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

template <class F>
inline int32_t scaled_sum(const Codes& c, const Activation& a) {
  __m256i scale = sixteen_words(c.scale), total = _mm256_setzero_si256();
  if (F::bias && F::bias != 128) {
    __m256i sums = _mm256_madd_epi16(scale, _mm256_load_si256((const __m256i*)a.sum16));
    total = _mm256_mullo_epi32(sums, _mm256_set1_epi32(-F::bias));
  }
  const __m256i even = _mm256_setr_epi8(0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3);
  const __m256i halves[2] = {_mm256_permute4x64_epi64(scale, 0x44), _mm256_permute4x64_epi64(scale, 0xee)};
#pragma GCC unroll 8
  for (int k = 0; k < 8; k++) {  // groups 2 k and 2 k + 1
    __m256i by = _mm256_shuffle_epi8(halves[k / 4], _mm256_add_epi8(even, _mm256_set1_epi8(char(4 * (k % 4)))));
    total = _mm256_add_epi32(total, _mm256_madd_epi16(pairs<F::bias>(c.q + 32 * k, a.q + 32 * k), by));
  }
  return added(total);
}

inline int32_t low_sum(const Codes& c, const Activation& a) {
  return added(_mm256_madd_epi16(sixteen_words(c.low), _mm256_load_si256((const __m256i*)a.sum16)));
}

template <int BIAS>
inline void sums_of_32(const uint8_t* q, const Activation& a, int32_t* to) {
  __m256i x[8], y[4];
  for (int j = 0; j < 8; j++) x[j] = _mm256_madd_epi16(pairs<BIAS>(q + 32 * j, a.q + 32 * j), _mm256_set1_epi16(1));
  for (int i = 0; i < 4; i++) y[i] = _mm256_hadd_epi32(x[2 * i], x[2 * i + 1]);
  __m256i low = _mm256_hadd_epi32(y[0], y[1]), high = _mm256_hadd_epi32(y[2], y[3]);
  __m256i sum = _mm256_add_epi32(_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31));
  if (BIAS && BIAS != 128) {
    __m256i sums = _mm256_cvtepi16_epi32(_mm_load_si128((const __m128i*)a.sum32));
    sum = _mm256_sub_epi32(sum, _mm256_mullo_epi32(sums, _mm256_set1_epi32(BIAS)));
  }
  _mm256_store_si256((__m256i*)to, sum);
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

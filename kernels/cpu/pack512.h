// 16 rows x 256 weights as lanes = rows: how each layout gets there.

struct Tile {
  __m512i q[64];      // four neighbouring codes of 16 rows; biased ones are moved so that nothing is `zero_code`
  __m512i scale[16];  // of each group, or of each pair; `by_twos`: words of two neighbouring groups
  __m512i low[8];     // int16 of two neighbouring groups or pairs
  __m512 d[8], m[8];  // by place; of NVFP4 the scales of the first 16 and of the last
};

// Types whose sums of 16 mostly fit in words (`wide_by_twos`), and the largest of their codes without bias.
template <class F>
constexpr int largest = __is_same(F, Q6_K) ? 32 : __is_same(F, Q3_K) ? 4 : __is_same(F, Q2_K) ? 3 : 0;
template <class F>
constexpr bool by_twos = largest<F> > 0;
constexpr __mmask32 odd_words = 0xaaaaaaaa;

inline __m512i word(const void* p) { return _mm512_set1_epi32(load<int32_t>(p)); }

// The 32-bit columns of four rows, in each 16-byte lane.
inline void transpose4(const __m512i* v, __m512i* to) {
  __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
  __m512i c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
  to[0] = _mm512_unpacklo_epi64(a, c);
  to[1] = _mm512_unpackhi_epi64(a, c);
  to[2] = _mm512_unpacklo_epi64(b, d);
  to[3] = _mm512_unpackhi_epi64(b, d);
}

// Four 32-bit columns of 16 rows that are `stride` bytes apart.
inline __attribute__((always_inline)) void columns4(const char* p, size_t stride, __m512i* to) {
  asm("" : "+r"(p));  // or all sixteen rows' places are kept, where there are no registers for them
  __m512i v[4];
  for (int i = 0; i < 4; i++) {
    auto row = [&](int r) { return _mm_loadu_si128((const __m128i*)(p + r * stride + i * stride)); };
    __m512i x = _mm512_castsi128_si512(row(0));
    x = _mm512_mask_broadcast_i32x4(x, 0x00f0, row(4));
    x = _mm512_mask_broadcast_i32x4(x, 0x0f00, row(8));
    v[i] = _mm512_mask_broadcast_i32x4(x, 0xf000, row(12));
  }
  transpose4(v, to);
}

// Layouts whose codes are got from their bytes one by one are transposed as they lie, 16 rows of 16 bytes at a time:
// `pack_bytes` of each type. The others are unpacked row by row first.

inline __m512i byte_of(__m512i x, int i) {  // of each 32 bits
  return _mm512_and_si512(_mm512_srli_epi32(x, 8 * i), _mm512_set1_epi32(255));
}
inline __m512 low_half(__m512i x) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(x)); }
inline __m512 high_half(__m512i x) { return low_half(_mm512_srli_epi32(x, 16)); }

// d, m and the eight pairs of six bits of Q4_K and Q5_K, from their first 16 bytes.
inline void pack_six_bits(const uint8_t* s, size_t row_bytes, Tile& tile) {
  __m512i x[4], six[2], low[2];
  columns4((const char*)s, row_bytes, x);
  six[0] = _mm512_and_si512(x[1], byte64(63));
  low[0] = _mm512_and_si512(x[2], byte64(63));
  six[1] = _mm512_or_si512(lows4(x[3]), _mm512_and_si512(_mm512_srli_epi16(x[1], 2), byte64(0x30)));
  low[1] = _mm512_or_si512(highs4(x[3]), _mm512_and_si512(_mm512_srli_epi16(x[2], 2), byte64(0x30)));
  for (int h = 0; h < 2; h++) {
    for (int i = 0; i < 4; i++) tile.scale[4 * h + i] = byte_of(six[h], i);
    __m512i even = _mm512_and_si512(low[h], _mm512_set1_epi16(255)), odd = _mm512_srli_epi16(low[h], 8);  // 0, 2; 1, 3
    tile.low[2 * h] = _mm512_or_si512(_mm512_and_si512(even, _mm512_set1_epi32(0xffff)), _mm512_slli_epi32(odd, 16));
    const __m512i upper = _mm512_andnot_si512(_mm512_set1_epi32(0xffff), odd);
    tile.low[2 * h + 1] = _mm512_or_si512(_mm512_srli_epi32(even, 16), upper);
  }
  tile.d[0] = low_half(x[0]);
  tile.m[0] = high_half(x[0]);
}

inline void pack_bytes(Q4_K, const uint8_t* s, size_t row_bytes, Tile& tile) {
  pack_six_bits(s, row_bytes, tile);
  for (int i = 0; i < 8; i++) {  // 32 bytes are 32 low and 32 high codes
    __m512i x[4], *q = tile.q + 16 * (i / 2) + 4 * (i % 2);
    columns4((const char*)s + 16 + 16 * i, row_bytes, x);
    for (int k = 0; k < 4; k++) {
      q[k] = lows4(x[k]);
      q[k + 8] = highs4(x[k]);
    }
  }
}

// For `winograd512.h`: the even ones of the columns that it pairs are moved by 128; returns what the sums of all tokens
// have in excess, where each of a scale starts from `below`.
inline __m512i pack_moved(Q4_K, const uint8_t* s, size_t row_bytes, int below, Tile& tile) {
  const __m512i moved = byte64(128), start = _mm512_set1_epi32(-below);
  __m512i excess = _mm512_setzero_si512(), sum[2] = {start, start};
  pack_six_bits(s, row_bytes, tile);
  for (int i = 0; i < 8; i++) {
    __m512i x[4], *q = tile.q + 16 * (i / 2) + 4 * (i % 2);
    columns4((const char*)s + 16 + 16 * i, row_bytes, x);
    for (int k = 0; k < 4; k++) {
      q[k] = lows4(x[k]);
      q[k + 8] = highs4(x[k]);
    }
    for (int k = 0; k < (i % 2 ? 2 : 4); k += 2)
      for (int h = 0; h < 2; h++) {
        q[k + 8 * h] = _mm512_or_si512(q[k + 8 * h], moved);
        sum[h] = _mm512_dpbusd_epi32(sum[h], q[k + 8 * h], q[k + 8 * h + 1]);
      }
    for (int h = 0; h < 2 && i % 2; h++) {
      excess = _mm512_add_epi32(excess, _mm512_mullo_epi32(sum[h], tile.scale[i - 1 + h]));
      sum[h] = start;
    }
  }
  return excess;
}

inline void pack_bytes(Q5_K, const uint8_t* s, size_t row_bytes, Tile& tile) {
  pack_six_bits(s, row_bytes, tile);
  const __m512i m = byte64(16);
  __m512i up[8];
  for (int h = 0; h < 2; h++) columns4((const char*)s + 16 + 16 * h, row_bytes, up + 4 * h);
  for (int i = 0; i < 8; i++) {
    __m512i x[4], *q = tile.q + 16 * (i / 2) + 4 * (i % 2);
    columns4((const char*)s + 48 + 16 * i, row_bytes, x);
    for (int k = 0; k < 4; k++) {
      __m512i h = _mm512_srli_epi16(up[4 * (i % 2) + k], i / 2 * 2);
      q[k] = _mm512_or_si512(lows4(x[k]), _mm512_and_si512(_mm512_slli_epi16(h, 4), m));
      q[k + 8] = _mm512_or_si512(highs4(x[k]), _mm512_and_si512(_mm512_slli_epi16(h, 3), m));
    }
  }
}

inline void pack_bytes(Q6_K, const uint8_t* s, size_t row_bytes, Tile& tile) {
  const __m512i m = byte64(0x30), bias = byte64(zero_code - Q6_K::bias);
  for (int h = 0; h < 2; h++) {  // 64 bytes of four bits and 32 of four times two are 128 codes
    __m512i up[8];
    for (int i = 0; i < 2; i++) columns4((const char*)s + 128 + 32 * h + 16 * i, row_bytes, up + 4 * i);
    for (int i = 0; i < 4; i++) {
      __m512i x[4], *q = tile.q + 32 * h + 4 * i;
      columns4((const char*)s + 64 * h + 16 * i, row_bytes, x);
      for (int k = 0; k < 4; k++) {
        __m512i u = up[4 * (i % 2) + k], v = i < 2 ? u : _mm512_srli_epi16(u, 2);
        __m512i low = _mm512_or_si512(lows4(x[k]), _mm512_and_si512(_mm512_slli_epi16(v, 4), m));
        q[k] = _mm512_add_epi8(low, bias);
        q[k + 16] = _mm512_add_epi8(_mm512_or_si512(highs4(x[k]), _mm512_and_si512(v, m)), bias);
      }
    }
  }
  __m512i scale[4], end[4];
  columns4((const char*)s + 192, row_bytes, scale);
  columns4((const char*)s + 194, row_bytes, end);
  for (int i = 0; i < 4; i++) {
    const __m512i even = _mm512_srai_epi16(_mm512_slli_epi16(scale[i], 8), 8), odd = _mm512_srai_epi16(scale[i], 8);
    tile.scale[2 * i] = _mm512_mask_blend_epi16(odd_words, even, _mm512_slli_epi32(odd, 16));
    tile.scale[2 * i + 1] = _mm512_mask_blend_epi16(odd_words, _mm512_srli_epi32(even, 16), odd);
  }
  tile.d[0] = high_half(end[3]);
}

inline void pack_bytes(IQ4_XS, const uint8_t* s, size_t row_bytes, Tile& tile) {
  const __m512i table = _mm512_add_epi8(table16(iq4_values), byte64(zero_code - IQ4_XS::bias));
  __m512i head[4];
  columns4((const char*)s, row_bytes, head);
  __m512i high = _mm512_srli_epi32(head[0], 16);
  for (int j = 0; j < 8; j++) {
    __m512i low = _mm512_and_si512(_mm512_srli_epi32(head[1], 4 * j), _mm512_set1_epi32(15));
    __m512i two = _mm512_and_si512(_mm512_srli_epi32(high, 2 * j), _mm512_set1_epi32(3));
    tile.scale[j] = _mm512_sub_epi32(_mm512_or_si512(low, _mm512_slli_epi32(two, 4)), _mm512_set1_epi32(32));
  }
  tile.d[0] = low_half(head[0]);
  for (int j = 0; j < 8; j++) {
    __m512i x[4], *q = tile.q + 8 * j;
    columns4((const char*)s + 8 + 16 * j, row_bytes, x);
    for (int k = 0; k < 4; k++) {
      q[k] = _mm512_shuffle_epi8(table, lows4(x[k]));
      q[k + 4] = _mm512_shuffle_epi8(table, highs4(x[k]));
    }
  }
}

// Bit numbers for each row's 32: of its nth byte, bit `at` + n `step`.
inline __m512i bits_from(int at, int step) {
  return _mm512_add_epi8(byte64(at), _mm512_set1_epi64(0x2020202000000000 + step * 0x0302010003020100));
}
inline __mmask64 bits_at(__m512i x, int at) { return _mm512_bitshuffle_epi64_mask(x, bits_from(at, 1)); }
inline __m512i negated(__m512i q, __mmask64 where) { return _mm512_mask_sub_epi8(q, where, _mm512_setzero_si512(), q); }
// Four points of eight elements, 8 columns: the `n`th of these is what index byte `order[n]` says, with sign byte
// `order[n]`.
template <class P>
inline void points_of_8(const P& points, __m512i index, __mmask64 high, __m512i signs, const int* order, __m512i* q) {
  const __m512i half[2] = {points.look(0, index, high), points.look(1, index, high)};
  for (int n = 0; n < 4; n++)
    for (int h = 0; h < 2; h++) {
      __m512i code = _mm512_multishift_epi64_epi8(bits_from(8 * order[n], 2), half[h]);
      q[2 * n + h] = negated(_mm512_permutexvar_epi8(code, points.values), bits_at(signs, 8 * order[n] + 4 * h));
    }
}

// Four points of four elements, 4 columns; their signs are bits [at, at + 16) of each row's 32.
template <class P>
inline void points_of_4(const P& points, __m512i index, __mmask64 high, __m512i signs, int at, __m512i* q) {
  const __m512i a = points.look(0, index, high), b = points.look(1, index, high);
  const __m512i low = _mm512_unpacklo_epi8(a, b), up = _mm512_unpackhi_epi8(a, b);  // 64 bits a row
  const __m512i eight = _mm512_set1_epi64(0x1b1813100b080300);
  for (int n = 0; n < 4; n += 2) {
    __m512i from = _mm512_add_epi8(eight, byte64(16 * n));
    __m512 x = _mm512_castsi512_ps(_mm512_permutexvar_epi8(_mm512_multishift_epi64_epi8(from, low), points.values));
    __m512 y = _mm512_castsi512_ps(_mm512_permutexvar_epi8(_mm512_multishift_epi64_epi8(from, up), points.values));
    q[n] = negated(_mm512_castps_si512(_mm512_shuffle_ps(x, y, 0x88)), bits_at(signs, at + 4 * n));
    q[n + 1] = negated(_mm512_castps_si512(_mm512_shuffle_ps(x, y, 0xdd)), bits_at(signs, at + 4 * n + 4));
  }
}

inline __m512i odd_of(__m512i x, int at) {  // 2 n + 1 of the four bits n from `at`
  return _mm512_or_si512(_mm512_slli_epi32(_mm512_and_si512(_mm512_srli_epi32(x, at), _mm512_set1_epi32(15)), 1),
                         _mm512_set1_epi32(1));
}
inline __m512i four_signs(__m512i x) {  // four times seven bits -> four bytes
  return with_parity(_mm512_and_si512(_mm512_multishift_epi64_epi8(bits_from(0, 7), x), byte64(127)));
}
template <class F>
inline void pack_d(const uint8_t* s, size_t row_bytes, Tile& tile) {
  __m512i x[4];
  columns4((const char*)s, row_bytes, x);
  tile.d[0] = _mm512_mul_ps(low_half(x[0]), _mm512_set1_ps(F::factor));
}

inline void pack_bytes(IQ2_XXS, const uint8_t* s, size_t row_bytes, Tile& tile) {
  const auto& points = IQ2_XXS::points();
  static constexpr int order[4] = {0, 1, 2, 3};
  pack_d<IQ2_XXS>(s, row_bytes, tile);
  for (int i = 0; i < 4; i++) {
    __m512i x[4];
    columns4((const char*)s + 2 + 16 * i, row_bytes, x);
    for (int k = 0; k < 4; k += 2) {
      const int j = 2 * i + k / 2;
      tile.scale[j] = odd_of(x[k + 1], 28);
      points_of_8(points, x[k], 0, four_signs(x[k + 1]), order, tile.q + 8 * j);
    }
  }
}

inline void pack_bytes(IQ2_XS, const uint8_t* s, size_t row_bytes, Tile& tile) {
  const auto& points = IQ2_XS::points();
  static constexpr int order[4] = {0, 2, 1, 3};
  pack_d<IQ2_XS>(s, row_bytes, tile);
  const __m512i low = _mm512_set1_epi16(255);
  for (int i = 0; i < 4; i++) {
    __m512i x[4];
    columns4((const char*)s + 2 + 16 * i, row_bytes, x);
    for (int k = 0; k < 4; k += 2) {  // words 0, 1 and 2, 3 as bytes 0, 2, 1, 3
      __m512i index = _mm512_or_si512(_mm512_and_si512(x[k], low), _mm512_slli_epi16(x[k + 1], 8));
      __m512i rest = _mm512_or_si512(_mm512_srli_epi16(x[k], 8), _mm512_andnot_si512(low, x[k + 1]));
      __m512i signs = with_parity(_mm512_and_si512(_mm512_srli_epi16(rest, 1), byte64(127)));
      points_of_8(points, index, _mm512_test_epi8_mask(rest, byte64(1)), signs, order, tile.q + 16 * i + 4 * k);
    }
  }
  __m512i x[4];
  columns4((const char*)s + 58, row_bytes, x);
  for (int g = 0; g < 16; g++) tile.scale[g] = odd_of(x[2 + g / 8], g % 8 * 4);
}

inline void pack_bytes(IQ3_XXS, const uint8_t* s, size_t row_bytes, Tile& tile) {
  const auto& points = IQ3_XXS::points();
  pack_d<IQ3_XXS>(s, row_bytes, tile);
  __m512i signs[8];
  for (int h = 0; h < 2; h++) columns4((const char*)s + 66 + 16 * h, row_bytes, signs + 4 * h);
  for (int j = 0; j < 8; j++) {
    tile.scale[j] = odd_of(signs[j], 28);
    signs[j] = four_signs(signs[j]);
  }
  for (int i = 0; i < 4; i++) {
    __m512i x[4];
    columns4((const char*)s + 2 + 16 * i, row_bytes, x);
    for (int k = 0; k < 4; k++)
      points_of_4(points, x[k], 0, signs[2 * i + k / 2], k % 2 * 16, tile.q + 16 * i + 4 * k);
  }
}

inline void pack_bytes(IQ3_S, const uint8_t* s, size_t row_bytes, Tile& tile) {
  const auto& points = IQ3_S::points();
  pack_d<IQ3_S>(s, row_bytes, tile);
  __m512i signs[8], high[4], end[4];
  for (int h = 0; h < 2; h++) columns4((const char*)s + 74 + 16 * h, row_bytes, signs + 4 * h);
  columns4((const char*)s + 66, row_bytes, high);
  columns4((const char*)s + 94, row_bytes, end);
  for (int j = 0; j < 8; j++) tile.scale[j] = odd_of(end[3], 4 * j);
  for (int i = 0; i < 4; i++) {
    __m512i x[4];
    columns4((const char*)s + 2 + 16 * i, row_bytes, x);
    for (int k = 0; k < 4; k++) {
      __mmask64 ninth = bits_at(high[i / 2], i % 2 * 16 + 4 * k);
      points_of_4(points, x[k], ninth, signs[2 * i + k / 2], k % 2 * 16, tile.q + 16 * i + 4 * k);
    }
  }
}

template <class F>
constexpr bool by_bytes = __is_same(F, Q4_K) || __is_same(F, Q5_K) || __is_same(F, Q6_K) || __is_same(F, IQ4_XS) ||
                          __is_same(F, IQ2_XXS) || __is_same(F, IQ2_XS) || __is_same(F, IQ3_XXS) || __is_same(F, IQ3_S);

struct alignas(64) Unpacked {  // 16 rows of one block
  uint8_t q[16][256];
  int16_t scale[16][16], low[16][16];
  uint32_t d[16];
};

template <class F>
void pack_wide(const uint8_t* s, size_t row_bytes, Unpacked& u, Tile& tile) {
  for (int r = 0; r < 16; r++, s += row_bytes) {
    __m512i q[4];
    F::codes(s, q);
    for (int k = 0; k < 4; k++) {
      if constexpr (F::signs) {
        const __m512i above = _mm512_add_epi8(q[k], byte64(zero_code));
        q[k] = _mm512_mask_sub_epi8(above, F::negative(s, k), byte64(zero_code), q[k]);
      } else if (F::bias) {
        q[k] = _mm512_add_epi8(q[k], byte64(zero_code - F::bias));
      }
      _mm512_store_si512(u.q[r] + 64 * k, q[k]);
    }
    Scales sc = F::scales(s);
    _mm256_store_si256((__m256i*)u.scale[r], sc.scale);
    if (F::lows) _mm256_store_si256((__m256i*)u.low[r], sc.low);
    u.d[r] = F::d(s);
  }
  for (int i = 0; i < 16; i++) columns4((const char*)u.q[0] + 16 * i, 256, tile.q + 4 * F::group[i]);
  for (int h = 0; h < (F::pairs ? 1 : 2); h++) {
    __m512i two[4];
    columns4((const char*)u.scale[0] + 16 * h, 32, two);
    for (int i = 0; i < 4; i++) {
      if (by_twos<F>) tile.scale[4 * h + i] = two[i];
      if (by_twos<F>) continue;
      tile.scale[8 * h + 2 * i] = _mm512_srai_epi32(_mm512_slli_epi32(two[i], 16), 16);
      tile.scale[8 * h + 2 * i + 1] = _mm512_srai_epi32(two[i], 16);
    }
    if (F::lows) columns4((const char*)u.low[0] + 16 * h, 32, tile.low + 4 * h);
  }
  __m512i dm = _mm512_load_si512(u.d);
  tile.d[0] = _mm512_mul_ps(_mm512_cvtph_ps(_mm512_cvtepi32_epi16(dm)), _mm512_set1_ps(F::factor));
  if (F::lows) tile.m[0] = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(dm, 16)));
}

template <class F>
void pack_narrow(const uint8_t* s, size_t row_bytes, int blocks, Unpacked& u, Tile& tile) {
  alignas(64) uint8_t end[8 * F::bytes];
  constexpr bool as_they_lie = __is_same(F, Q8_0);
  if constexpr (as_they_lie)
    for (int i = 0; i < 2 * blocks; i++) {
      __m512i* q = tile.q + 4 * i;
      columns4((const char*)s + i / 2 * F::bytes + 2 + i % 2 * 16, row_bytes, q);
      for (int k = 0; k < 4; k++) q[k] = _mm512_add_epi8(q[k], byte64(zero_code));
    }
  for (int r = 0; r < 16; r++, s += row_bytes) {
    const uint8_t* from = s;
    if (blocks < 8) {
      __builtin_memset(end, 0, sizeof end);
      __builtin_memcpy(end, s, size_t(blocks) * F::bytes);
      from = end;
    }
    if constexpr (!as_they_lie) {
      __m512i q[4];
      F::codes(from, q);
      for (int k = 0; k < 4; k++)
        _mm512_store_si512(u.q[r] + 64 * k, F::bias ? _mm512_add_epi8(q[k], byte64(zero_code - F::bias)) : q[k]);
    }
    _mm256_store_si256((__m256i*)u.scale[r], F::d(from));
    if (F::lows) _mm256_store_si256((__m256i*)u.low[r], F::m(from));
  }
  for (int i = 0; i < 16 && !as_they_lie; i++) columns4((const char*)u.q[0] + 16 * i, 256, tile.q + 4 * F::group[i]);
  auto floats = [](const int16_t* words, __m512* to) {
    for (int h = 0; h < 2; h++) {
      __m512i x[4];
      columns4((const char*)words + 16 * h, 32, x);
      for (int k = 0; k < 2; k++) {
        to[place(2 * h + k)] = F::number(_mm512_cvtepi32_epi16(x[2 * k]));
        to[place(2 * h + k + 4)] = F::number(_mm512_cvtepi32_epi16(_mm512_srli_epi32(x[2 * k], 16)));
      }
    }
  };
  floats(u.scale[0], tile.d);
  if (F::lows) floats(u.low[0], tile.m);
}

// The 256 weights of 16 rows at `s`, of which `left` are inside their rows; `unpacked` is room.
template <class F>
inline void pack(const uint8_t* s, size_t row_bytes, int left, Unpacked& unpacked, Tile& tile) {
  if constexpr (by_bytes<F>) pack_bytes(F(), s, row_bytes, tile);
  else if constexpr (F::wide) pack_wide<F>(s, row_bytes, unpacked, tile);
  else if constexpr (!F::pairs) pack_sixteens(F(), s, row_bytes, left, tile);
  else pack_narrow<F>(s, row_bytes, left < 256 ? left / 32 : 8, unpacked, tile);
}

// One token: each row's bytes are read once, in order, unpacked in registers and multiplied with the activations, whose
// 16-byte lanes were put into the codes' order before.

// int16 lane indices that spread the scales of a type over the lanes of register k.
template <class F>
struct Spread {
  alignas(64) int16_t index[4][32] = {};
  constexpr Spread() {
    for (int k = 0; k < 4; k++)
      for (int i = 0; i < 32; i++) index[k][i] = int16_t(F::group[4 * k + i / 8] / (F::pairs ? 2 : 1));
  }
};
template <class F>
constexpr Spread<F> spread;

template <class F>
constexpr bool natural() {
  for (int i = 0; i < 16; i++)
    if (F::group[i] != i) return false;
  return true;
}

inline __m128i halves_added(__m256i x) { return _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1)); }

// total: 16 parts of the sum of scale * (q - bias) * y; low: 4 parts of the sum of low * y.
template <class F>
inline __attribute__((always_inline)) void block_sums(const uint8_t* s, const Activation& a, const int8_t* y,
                                                      __m512i& total, __m128i& low) {
  Scales sc = F::scales(s);
  __m512i q[4], scale = _mm512_castsi256_si512(sc.scale), part[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  F::codes(s, q);
  if (F::bias) {
    __m256i moved;
    if (F::pairs) {
      __m128i sums = _mm_load_si128((const __m128i*)a.sum32);
      moved = _mm256_zextsi128_si256(_mm_madd_epi16(_mm256_castsi256_si128(sc.scale), sums));
    } else {
      moved = _mm256_madd_epi16(sc.scale, _mm256_load_si256((const __m256i*)a.sum16));
    }
    moved = _mm256_sub_epi32(_mm256_setzero_si256(), F::bias & (F::bias - 1)
                                                         ? _mm256_mullo_epi32(moved, _mm256_set1_epi32(F::bias))
                                                         : _mm256_slli_epi32(moved, __builtin_ctz(F::bias | 1 << 30)));
    part[0] = _mm512_zextsi256_si512(moved);
  }
  if constexpr (F::large) {  // registers 2 k and 2 k + 1 share their scales
    __m512i wide = _mm512_cvtepi16_epi32(sc.scale);
    for (int k = 0; k < 2; k++) {
      __m512i dot = _mm512_dpbusd_epi32(_mm512_setzero_si512(), q[2 * k], _mm512_load_si512(y + 128 * k));
      dot = _mm512_dpbusd_epi32(dot, q[2 * k + 1], _mm512_load_si512(y + 128 * k + 64));
      __m512i at = _mm512_add_epi32(_mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3), _mm512_set1_epi32(4 * k));
      part[k] = _mm512_add_epi32(part[k], _mm512_mullo_epi32(dot, _mm512_permutexvar_epi32(at, wide)));
    }
  } else {
    for (int k = 0; k < 4; k++) {
      __m512i v = _mm512_load_si512(y + 64 * k);
      if constexpr (F::signs) v = _mm512_mask_sub_epi8(v, F::negative(s, k), _mm512_setzero_si512(), v);
      __m512i by = _mm512_permutexvar_epi16(_mm512_load_si512(spread<F>.index[k]), scale);
      part[k & 1] = _mm512_dpwssd_epi32(part[k & 1], _mm512_maddubs_epi16(q[k], v), by);
    }
  }
  total = _mm512_add_epi32(part[0], part[1]);
  if (F::lows) {
    if (F::pairs) low = _mm_madd_epi16(_mm256_castsi256_si128(sc.low), _mm_load_si128((const __m128i*)a.sum32));
    else low = halves_added(_mm256_madd_epi16(sc.low, _mm256_load_si256((const __m256i*)a.sum16)));
  }
}

inline __m128i sums_of_4(const __m512i* x) {
  __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(x[0], x[1]), _mm512_unpackhi_epi32(x[0], x[1]));
  __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(x[2], x[3]), _mm512_unpackhi_epi32(x[2], x[3]));
  __m512i s = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  return halves_added(_mm256_add_epi32(_mm512_castsi512_si256(s), _mm512_extracti64x4_epi64(s, 1)));
}
inline __m128i sums_of_4(const __m128i* x) {
  __m128i ab = _mm_add_epi32(_mm_unpacklo_epi32(x[0], x[1]), _mm_unpackhi_epi32(x[0], x[1]));
  __m128i cd = _mm_add_epi32(_mm_unpacklo_epi32(x[2], x[3]), _mm_unpackhi_epi32(x[2], x[3]));
  return _mm_add_epi32(_mm_unpacklo_epi64(ab, cd), _mm_unpackhi_epi64(ab, cd));
}

// The values of N <= 4 blocks; `a` and `y` of each.
template <class F, int N>
inline __attribute__((always_inline)) __m128 wide_values(const uint8_t* s, const Activation* const* a,
                                                         const int8_t* const* y) {
  __m512i total[4];
  __m128i low[4];
  uint32_t d[4] = {};
  for (int i = 0; i < 4; i++) total[i] = _mm512_setzero_si512(), low[i] = _mm_setzero_si128();
  for (int i = 0; i < N; i++) {
    block_sums<F>(s + i * F::bytes, *a[i], y[i], total[i], low[i]);
    d[i] = F::d(s + i * F::bytes);
  }
  __m128i both = _mm_setr_epi32(int(d[0]), int(d[1]), int(d[2]), int(d[3]));
  __m256 dm = _mm256_cvtph_ps(_mm_shuffle_epi8(both, _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15)));
  __m128 scale = _mm256_castps256_ps128(dm);
  if (F::factor != 1.0f) scale = _mm_mul_ps(scale, _mm_set1_ps(F::factor));
  __m128 value = _mm_mul_ps(scale, _mm_cvtepi32_ps(sums_of_4(total)));
  if (F::lows) value = _mm_fnmadd_ps(_mm256_extractf128_ps(dm, 1), _mm_cvtepi32_ps(sums_of_4(low)), value);
  return value;
}

// Ask for SIZE bytes that will be read in a quarter of a microsecond; the hardware's own prefetcher alone leaves a third
// of the bandwidth unused. Beyond the weights' end this does nothing.
template <int SIZE>
inline __attribute__((always_inline)) void ask_ahead(const uint8_t* s) {
#pragma GCC unroll 32
  for (int i = 0; i < SIZE; i += 64) _mm_prefetch((const char*)s + 2048 + i, _MM_HINT_NTA);
}

constexpr int blocks_at_once = 512;  // of one row or of four

template <class F>
void wide_stream(const Job& job, int token, int begin, int end) {
  const int blocks = job.cols / 256, rows_at_once = blocks <= blocks_at_once / 4 ? 4 : 1;
  const int8_t* order = nullptr;
  if (!natural<F>()) {
    int8_t* to = reinterpret_cast<int8_t*>(scratch(size_t(blocks) * 256));
    order = to;
    for (int b = 0; b < blocks; b++, to += 256)
      for (int i = 0; i < 16; i++) __builtin_memcpy(to + 16 * i, job.at(token, b).q + 16 * F::group[i], 16);
  }
  auto codes_of = [&](int b) { return natural<F>() ? job.at(token, b).q : order + size_t(b) * 256; };
  alignas(64) float values[blocks_at_once + 4];
  float* out = job.out[token];
  for (int r = begin; r < end; r += rows_at_once) {
    const int rows = end - r < rows_at_once ? end - r : rows_at_once;
    float acc[4] = {};
    for (int first = 0; first < blocks; first += blocks_at_once) {
      const int here = blocks - first < blocks_at_once ? blocks - first : blocks_at_once, count = rows * here;
      const uint8_t* s = job.weights + size_t(r) * job.row_bytes + size_t(first) * F::bytes;
      const Activation* a[4];
      const int8_t* y[4];
      int b = 0, i = 0;
      auto next = [&](int n) {
        for (int k = 0; k < n; k++) {
          a[k] = &job.at(token, first + b);
          y[k] = codes_of(first + b);
          b = b + 1 == here ? 0 : b + 1;
        }
      };
      for (; i + 4 <= count; i += 4, s += 4 * F::bytes) {
        next(4);
        ask_ahead<4 * F::bytes>(s);
        _mm_store_ps(values + i, wide_values<F, 4>(s, a, y));
      }
      for (; i < count; i++, s += F::bytes) {
        next(1);
        values[i] = _mm_cvtss_f32(wide_values<F, 1>(s, a, y));
      }
      for (int n = 0; n < here; n++) {
        float d = job.at(token, first + n).d[0];
        for (int k = 0; k < rows; k++) acc[k] = __builtin_fmaf(d, values[k * here + n], acc[k]);
      }
    }
    for (int k = 0; k < rows; k++) out[r + k] = acc[k];
  }
}

// Two chunks of 256 activations, and what else the weights that meet them need: blocks k and k + 4 of the first, then of
// the second in lane k.
struct alignas(64) Pair {
  int8_t q[2][256];   // in the order of `Narrow::group`
  int32_t moved[16];  // -bias times the sums
  float d[16], sums[16];
  __mmask16 inside;  // which blocks are in the row: behind a row's end lies the next
};

template <class F>
inline void make_pair(const Activation& a, const Activation& b, int blocks_a, int blocks_b, Pair& to) {
  to.inside = 0;
  for (int half = 0; half < 2; half++) {
    const Activation& from = half ? b : a;
    for (int i = 0; i < 16; i++) __builtin_memcpy(to.q[half] + 16 * i, from.q + 16 * F::group[i], 16);
    for (int j = 0; j < 8; j++) {
      const int i = 4 * (j % 4) + 2 * half + j / 4;
      to.moved[i] = -F::bias * from.sum32[j];
      to.sums[i] = float(from.sum32[j]);
      to.d[i] = from.d[place(j)];
      to.inside |= __mmask16(j < (half ? blocks_b : blocks_a)) << i;
    }
  }
}

// Of each 128 bits the sum, for four registers of sums of eight products of an int8 and a code of at most MOST.
template <int MOST>
inline __m512i lane_sums(const __m512i* x) {
  const __m512i one = _mm512_set1_epi16(1);
  auto paired = [one](__m512i a, __m512i b) { return _mm512_madd_epi16(_mm512_packs_epi32(a, b), one); };
  if constexpr (MOST < 16) return paired(paired(x[0], x[1]), paired(x[2], x[3]));  // 16 products fit in an int16
  if constexpr (MOST < 32) {                                                       // 8 products fit
    const __m512 a = _mm512_castsi512_ps(paired(x[0], x[1])), b = _mm512_castsi512_ps(paired(x[2], x[3]));
    const __m512i even = _mm512_castps_si512(_mm512_shuffle_ps(a, b, 0x88));
    return _mm512_add_epi32(even, _mm512_castps_si512(_mm512_shuffle_ps(a, b, 0xdd)));
  }
  __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(x[0], x[1]), _mm512_unpackhi_epi32(x[0], x[1]));
  __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(x[2], x[3]), _mm512_unpackhi_epi32(x[2], x[3]));
  return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
}

// Lane 1: q[0] and q[2] of either chunk of 256 weights, lane 3: q[1] and q[3].
template <class F>
inline __attribute__((always_inline)) __m512 narrow_quads(const uint8_t* a, const uint8_t* b, const Pair& y) {
  __m512i dot[4];
  for (int half = 0; half < 2; half++) {
    __m512i q[4];
    F::codes(half ? b : a, q);
    for (int i = 0; i < 2; i++) {
      __m512i x = _mm512_dpbusd_epi32(_mm512_setzero_si512(), q[2 * i], _mm512_load_si512(y.q[half] + 128 * i));
      dot[2 * half + i] = _mm512_dpbusd_epi32(x, q[2 * i + 1], _mm512_load_si512(y.q[half] + 128 * i + 64));
    }
  }
  __m512i sum = lane_sums<F::most>(dot);
  if (F::bias) sum = _mm512_add_epi32(sum, _mm512_load_si512(y.moved));
  auto number = [](__m256i of_a, __m256i of_b) { return F::number(_mm256_mask_blend_epi16(0xcccc, of_a, of_b)); };
  __m512 v = _mm512_maskz_mul_ps(y.inside, number(F::d(a), F::d(b)), _mm512_cvtepi32_ps(sum));
  if constexpr (F::lows) v = _mm512_maskz_fmadd_ps(y.inside, number(F::m(a), F::m(b)), _mm512_load_ps(y.sums), v);
  __m512 d = _mm512_load_ps(y.d), even = _mm512_mul_ps(d, v);
  return _mm512_fmadd_ps(d, v, _mm512_shuffle_f32x4(even, even, 0xa0));
}

template <class F>
void narrow_stream(const Job& job, int token, int begin, int end) {
  constexpr int size = 8 * F::bytes, rows_at_once = 4;
  const int chunks = (job.cols + 255) / 256, whole = job.cols / 256, pairs = chunks % 2 ? chunks : chunks / 2;
  const size_t held = size_t(rows_at_once) * chunks + 4;  // floats
  Pair* pair = reinterpret_cast<Pair*>(scratch(size_t(pairs) * sizeof(Pair) + held * sizeof(float)));
  float* values = reinterpret_cast<float*>(pair + pairs);
  auto blocks = [&](int n) { return n == whole ? job.cols / 32 % 8 : 8; };
  for (int i = 0; i < pairs; i++) {
    const int n = 2 * i % chunks, m = (2 * i + 1) % chunks;
    make_pair<F>(job.at(token, n), job.at(token, m), blocks(n), blocks(m), pair[i]);
  }
  alignas(64) uint8_t last[4][size];  // the matrix's end, with zeros behind it
  float* out = job.out[token];
  for (int r = begin; r < end; r += rows_at_once) {
    const int rows = end - r < rows_at_once ? end - r : rows_at_once, count = rows * chunks;
    const uint8_t *row = job.weights + size_t(r) * job.row_bytes, *at = row;
    int n = 0, p = 0;
    auto next = [&](int k) {
      const uint8_t* s = at;
      if (n == whole && s + size > job.stop) {
        __builtin_memset(last[k], 0, size);
        __builtin_memcpy(last[k], s, size_t(job.stop - s));
        s = last[k];
      }
      at += size;
      if (++n == chunks) n = 0, at = row += job.row_bytes;
      return s;
    };
#pragma GCC unroll 1
    for (int i = 0; i < count; i += 4) {
      const uint8_t* s[4];
      for (int k = 0; k < 4; k++) s[k] = i + k < count ? next(k) : s[0];
      ask_ahead<4 * size>(s[0]);
      const Pair& one = pair[p];
      p = p + 1 == pairs ? 0 : p + 1;
      const Pair& other = pair[p];
      p = p + 1 == pairs ? 0 : p + 1;
      __m512 x = narrow_quads<F>(s[0], s[1], one), z = narrow_quads<F>(s[2], s[3], other);
      __m512 sums = _mm512_add_ps(_mm512_shuffle_ps(x, z, 0x88), _mm512_shuffle_ps(x, z, 0xdd));  // q0+q2, q1+q3
      _mm_storeu_ps(values + i, _mm_add_ps(_mm512_extractf32x4_ps(sums, 1), _mm512_extractf32x4_ps(sums, 3)));
    }
    for (int k = 0; k < rows; k++) {
      float acc = 0.0f;
      for (int c = 0; c < chunks; c++) acc = acc + values[k * chunks + c];
      out[r + k] = acc;
    }
  }
}

template <class F>
inline void stream(const Job& job, int token, int begin, int end) {
  if constexpr (F::wide) wide_stream<F>(job, token, begin, end);
  else narrow_stream<F>(job, token, begin, end);
}

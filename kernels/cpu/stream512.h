// One token: each row's bytes are read once, in order, unpacked in registers and multiplied with the activations, whose
// 16-byte lanes were put into the codes' order before.

// int16 lane indices that spread the scales of a type over what `packs` makes of registers 2 k and 2 k + 1.
template <class F>
struct Spread {
  alignas(64) int16_t index[2][32] = {};
  constexpr Spread() {
    for (int k = 0; k < 2; k++)
      for (int i = 0; i < 32; i++)
        index[k][i] = int16_t(F::group[4 * (2 * k + i % 8 / 4) + i / 8] / (F::pairs ? 2 : 1));
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
  if constexpr (F::unscaled) {
    for (int k = 0; k < 4; k++) part[k & 1] = _mm512_dpbusd_epi32(part[k & 1], q[k], _mm512_load_si512(y + 64 * k));
  } else if constexpr (F::large) {  // registers 2 k and 2 k + 1 share their scales
    __m512i wide = _mm512_cvtepi16_epi32(sc.scale);
    for (int k = 0; k < 2; k++) {
      __m512i dot = _mm512_dpbusd_epi32(_mm512_setzero_si512(), q[2 * k], _mm512_load_si512(y + 128 * k));
      dot = _mm512_dpbusd_epi32(dot, q[2 * k + 1], _mm512_load_si512(y + 128 * k + 64));
      __m512i at = _mm512_add_epi32(_mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3), _mm512_set1_epi32(4 * k));
      part[k] = _mm512_add_epi32(part[k], _mm512_mullo_epi32(dot, _mm512_permutexvar_epi32(at, wide)));
    }
  } else {
    for (int k = 0; k < 2; k++) {  // sums of four products fit in an int16
      const __m512i none = _mm512_setzero_si512(), *v = (const __m512i*)(y + 128 * k);
      const __m512i first = _mm512_dpbusd_epi32(none, q[2 * k], _mm512_load_si512(v));
      const __m512i second = _mm512_dpbusd_epi32(none, q[2 * k + 1], _mm512_load_si512(v + 1));
      const __m512i by = _mm512_permutexvar_epi16(_mm512_load_si512(spread<F>.index[k]), scale);
      part[k] = _mm512_dpwssd_epi32(part[k], _mm512_packs_epi32(first, second), by);
    }
  }
  total = _mm512_add_epi32(part[0], part[1]);
  if (F::lows) {
    if (F::pairs) low = _mm_madd_epi16(_mm256_castsi256_si128(sc.low), _mm_load_si128((const __m128i*)a.sum32));
    else low = halves_added(_mm256_madd_epi16(sc.low, _mm256_load_si256((const __m256i*)a.sum16)));
  }
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
      const char *start = reinterpret_cast<const char*>(&job.at(token, first)), *at = start;
      int b = 0, i = 0;
      auto next = [&](int n) {
        for (int k = 0; k < n; k++) {
          a[k] = reinterpret_cast<const Activation*>(at);
          y[k] = natural<F>() ? a[k]->q : order + size_t(first + b) * 256;
          at += job.block_stride;
          if (++b == here) b = 0, at = start;
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

template <class F, class Sums, class Pair>
void paired_stream(const Job& job, int token, int begin, int end) {
  constexpr int size = 256 / F::block * F::bytes, rows_at_once = 4;
  const int chunks = (job.cols + 255) / 256, whole = job.cols / 256, pairs = chunks % 2 ? chunks : chunks / 2;
  const size_t held = size_t(rows_at_once) * chunks + 4;  // floats
  Pair* pair = reinterpret_cast<Pair*>(scratch(size_t(pairs) * sizeof(Pair) + held * sizeof(float)));
  float* values = reinterpret_cast<float*>(pair + pairs);
  auto blocks = [&](int n) { return n == whole ? job.cols / 32 % 8 : 8; };
  for (int i = 0; i < pairs; i++) {
    const int n = 2 * i % chunks, m = (2 * i + 1) % chunks;
    make_pair<F>(job.at(token, n), job.at(token, m), blocks(n), blocks(m), pair[i]);
  }
  const auto points = points_of<F>();  // a copy, for registers
  alignas(64) uint8_t last[4][size];  // the matrix's end, with zeros behind it
  float* out = job.out[token];
  for (int r = begin; r < end; r += rows_at_once) {
    const int rows = end - r < rows_at_once ? end - r : rows_at_once, count = rows * chunks;
    const uint8_t *row = job.weights + size_t(r) * job.row_bytes, *at = row;
    const Pair *one = nullptr, *other = nullptr;
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
    auto step = [&](int i) __attribute__((always_inline)) {
      const uint8_t* s[4];
      for (int k = 0; k < 4; k++) s[k] = i + k < count ? next(k) : s[0];
      ask_ahead<4 * size>(s[0]);
      one = &pair[p];
      p = p + 1 == pairs ? 0 : p + 1;
      other = &pair[p];
      p = p + 1 == pairs ? 0 : p + 1;
      return Sums(points, s, *one, *other);
    };
    if constexpr (F::grid) {  // floats are made in the next step, so that nothing after them waits with them
      Sums sums = step(0);
#pragma GCC unroll 1
      for (int i = 4; i < count; i += 4) {
        const Pair *a = one, *b = other;
        const Sums now = step(i);
        _mm_storeu_ps(values + i - 4, sums.values(*a, *b));
        sums = now;
      }
      _mm_storeu_ps(values + (count - 1) / 4 * 4, sums.values(*one, *other));
    } else {
#pragma GCC unroll 1
      for (int i = 0; i < count; i += 4) {
        const Sums sums = step(i);
        _mm_storeu_ps(values + i, sums.values(*one, *other));
      }
    }
    for (int k = 0; k < rows; k++) {
      float acc = 0.0f;
      for (int c = 0; c < chunks; c++) {
        const float value = values[k * chunks + c];
        acc = F::wide ? __builtin_fmaf(job.at(token, c).d[0], value, acc) : acc + value;
      }
      out[r + k] = acc;
    }
  }
}

template <class F>
inline void stream(const Job& job, int token, int begin, int end) {
  if constexpr (!F::wide) paired_stream<F, NarrowSums<F>, Halves>(job, token, begin, end);
  else if constexpr (F::grid) paired_stream<F, GridSums<F>, Elements>(job, token, begin, end);
  else wide_stream<F>(job, token, begin, end);
}

// One token and the other types: four times 256 weights a step.

template <class F, class Sums, class Pair, Asking HOW>
void paired_stream(const Job& job, int token, int begin, int end) {
  constexpr int size = 256 / F::block * F::bytes, rows_at_once = 4;
  const int chunks = (job.cols + 255) / 256, whole = job.cols / 256, pairs = chunks % 2 ? chunks : chunks / 2;
  ask_first(job.weights + size_t(begin) * job.row_bytes);
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
      ask_ahead<HOW, 4 * size>(s[0]);
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

// One of 2048 points is looked up in memory by Intel's CPUs, which gather fast and permute bytes of two registers
// slowly.
template <class F>
constexpr bool gathered = __is_same(F, IQ1_S) || __is_same(F, IQ1_M);
template <class F, Asking HOW>
constexpr bool by_elements = F::grid && !(gathered<F> && HOW == Asking::both);

template <class F, Asking HOW>
inline void stream_asking(const Job& job, int token, int begin, int end) {
  if constexpr (!F::pairs && !F::wide) paired_stream<F, SumsOf16<F>, Meeting16, HOW>(job, token, begin, end);
  else if constexpr (!F::wide) paired_stream<F, NarrowSums<F>, Halves, HOW>(job, token, begin, end);
  else if constexpr (by_elements<F, HOW>) paired_stream<F, GridSums<F>, Elements, HOW>(job, token, begin, end);
  else wide_stream<F, HOW>(job, token, begin, end);
}

template <class F>
inline void stream(const Job& job, int token, int begin, int end) {
  if (asking() == Asking::both) stream_asking<F, Asking::both>(job, token, begin, end);
  else stream_asking<F, asks<F> ? Asking::lines : Asking::pages>(job, token, begin, end);
}

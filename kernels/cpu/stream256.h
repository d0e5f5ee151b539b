// One token and types of blocks of 32 or 64, and which loop serves a type.

template <class F>
constexpr int sums_end = 256 + (F::pairs ? 32 : 64);  // of 256 activations and their sums; their scales lie behind

template <class F>
inline void put_narrow(const Activation& a, int8_t* to) {
  for (int i = 0; i < 16; i++)  // blocks a, b: a's first 16, b's first, a's last, b's last
    __builtin_memcpy(to + 16 * i, a.q + 64 * (i / 4) + 32 * (i % 2) + 16 * (i / 2 % 2), 16);
  for (int j = 0; j < 8; j++) reinterpret_cast<int32_t*>(to + 256)[j] = a.low32[j] / -128 * (F::lows ? 1 : F::bias);
}

// A token's activations as blocks of 32 or 64 meet them.
template <class F>
class OrderedNarrow {
 public:
  static constexpr int size = 256 / F::block * F::bytes;

  OrderedNarrow(const Job& job, int token)
      : whole(job.cols / 256), stop_(job.stop), left_(job.cols % 256), rest_(left_ / F::block * F::bytes) {
    const int blocks = whole + (rest_ ? 1 : 0);
    order_ = reinterpret_cast<int8_t*>(scratch(size_t(blocks) * each));
    for (int n = 0; n < blocks; n++) {
      const Activation& a = job.at(token, n);
      if constexpr (F::pairs) put_narrow<F>(a, order_ + each * n);
      else put_by_16<F>(a, order_ + each * n);
      __builtin_memcpy(order_ + each * n + sums_end<F>, a.d, sizeof(a.d));
    }
  }
  // What the nth 256 weights of a row add: the values of its blocks of 32, the even ones before the odd ones.
  inline __attribute__((always_inline)) __m256 values(const uint8_t* s, int n) const {
    if constexpr (F::pairs) return narrow_values<F>(s, order_ + each * n);
    else return values_by_16<F>(s, order_ + each * n);
  }
  const float* scales(int n) const { return reinterpret_cast<const float*>(order_ + each * n + sums_end<F>); }
  // What is left of a row behind the last whole 256.
  float add_rest(float sum, const uint8_t* s) {
    if (!rest_) return sum;
    if (stop_ - s < size) s = static_cast<const uint8_t*>(__builtin_memcpy(last_, s, size_t(rest_)));
    const int8_t* y = order_ + each * whole;
    if constexpr (F::pairs) return sum + sum_of_8(narrow_values<F, true>(s, y, left_ / 32), scales(whole));
    else return sum + sum_of_8(values_by_16<F>(s, y), scales(whole));
  }
  const int whole;

 private:
  static constexpr int each = sums_end<F> + 32;
  const uint8_t* const stop_;
  const int left_, rest_;
  int8_t* order_;
  alignas(32) uint8_t last_[size] = {};
};

template <class F, Asking HOW>
void narrow_stream(const Job& job, int token, int begin, int end) {
  const uint8_t* s = job.weights + size_t(begin) * job.row_bytes;
  ask_first(s);
  OrderedNarrow<F> held(job, token);
  for (int r = begin; r < end; r++) {
    s = job.weights + size_t(r) * job.row_bytes;
    float acc = 0.0f;
    for (int n = 0; n < held.whole; n++, s += held.size) {
      if (HOW != Asking::pages) ask_ahead<HOW, OrderedNarrow<F>::size>(s);
      acc += sum_of_8(held.values(s, n), held.scales(n));
    }
    job.out[token][r] = held.add_rest(acc, s);
  }
}

// Four runs of `rows` rows each from row `begin`, a row of each at once, and their activations once for all.
template <class F>
void apart_wide(const Job& job, int token, int begin, int rows) {
  const int blocks = job.cols / 256;
  const size_t apart = rows * job.row_bytes;
  const uint8_t* s = job.weights + size_t(begin) * job.row_bytes;
  const Ordered<F> met(job, token, 0);
  float* const out = job.out[token] + begin;
  for (int r = 0; r < rows; r++) {
    __m128 acc = _mm_setzero_ps();
    for (int b = 0; b < blocks; b++, s += F::bytes) {
      for (int k = 0; k < 4; k++) ask_in_run<F::bytes>(s + k * apart);
      WideSums<F> sums;
      sums.template put<4, true>(s, met.y + 256 * b, met.sums + sums_of_block<F> * b, apart);
      acc = _mm_fmadd_ps(_mm_set1_ps(met.d[b]), sums.values(), acc);
    }
    alignas(16) float four[4];
    _mm_store_ps(four, acc);
    for (int k = 0; k < 4; k++) out[r + k * rows] = four[k];
  }
}

template <class F>
void apart_narrow(const Job& job, int token, int begin, int rows) {
  const size_t apart = rows * job.row_bytes;
  OrderedNarrow<F> held(job, token);
  float* const out = job.out[token] + begin;
  for (int r = 0; r < rows; r++) {
    const uint8_t* s = job.weights + size_t(begin + r) * job.row_bytes;
    __m128 acc = _mm_setzero_ps();
    for (int n = 0; n < held.whole; n++, s += held.size) {
      __m256 v[4];
#pragma GCC unroll 4
      for (int k = 0; k < 4; k++) {
        ask_in_run<OrderedNarrow<F>::size>(s + k * apart);
        v[k] = held.values(s + k * apart, n);
      }
      acc = _mm_add_ps(acc, sums_of_8(v, held.scales(n)));
    }
    alignas(16) float four[4];
    _mm_store_ps(four, acc);
    for (int k = 0; k < 4; k++) out[r + k * rows] = held.add_rest(four[k], s + k * apart);
  }
}

template <class F>
inline void apart(const Job& job, int token, int begin, int rows) {
  if constexpr (F::wide) apart_wide<F>(job, token, begin, rows);
  else apart_narrow<F>(job, token, begin, rows);
}

template <class F, Asking HOW>
inline void stream_asking(const Job& job, int token, int begin, int end) {
  if constexpr (F::wide) wide_stream<F, HOW>(job, token, begin, end);
  else narrow_stream<F, HOW>(job, token, begin, end);
}

template <class F>
inline void stream(const Job& job, int token, int begin, int end) {
  if (asking() == Asking::both) return stream_asking<F, Asking::both>(job, token, begin, end);
  if constexpr (!vnni) {  // without AVX-512 Intel's CPUs alone have it
    const int rows = rows_apart(job, begin, end);
    if (rows) apart<F>(job, token, begin, rows);
    begin += 4 * rows;
    if (begin == end) return;
  }
  stream_asking<F, asks<F> ? Asking::lines : Asking::pages>(job, token, begin, end);
}

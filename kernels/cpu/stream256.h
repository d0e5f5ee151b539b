// One token and types of blocks of 32, and which loop serves a type.

template <class F>
void narrow_stream(const Job& job, int token, int begin, int end) {
  constexpr int size = 8 * F::bytes;
  const int whole = job.cols / 256, rest = job.cols / 32 % 8 * F::bytes;
  alignas(32) uint8_t last[size] = {};
  for (int r = begin; r < end; r++) {
    const uint8_t* s = job.weights + size_t(r) * job.row_bytes;
    float acc = 0.0f;
    for (int n = 0; n < whole; n++, s += size) {
      ask_ahead<size>(s);
      acc = acc + narrow_value<F>(s, job.at(token, n));
    }
    if (rest) {
      __builtin_memcpy(last, s, size_t(rest));
      acc = acc + narrow_value<F>(last, job.at(token, whole));
    }
    job.out[token][r] = acc;
  }
}

template <class F>
inline void stream(const Job& job, int token, int begin, int end) {
  if constexpr (F::wide) wide_stream<F>(job, token, begin, end);
  else narrow_stream<F>(job, token, begin, end);
}

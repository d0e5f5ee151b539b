// One token and types of blocks of 32 or 64, and which loop serves a type.

template <class F>
constexpr int met = 256 + (F::pairs ? 32 : 64);  // bytes of 256 activations and their sums

template <class F>
inline void put_narrow(const Activation& a, int8_t* to) {
  for (int i = 0; i < 16; i++)  // blocks a, b: a's first 16, b's first, a's last, b's last
    __builtin_memcpy(to + 16 * i, a.q + 64 * (i / 4) + 32 * (i % 2) + 16 * (i / 2 % 2), 16);
  for (int j = 0; j < 8; j++) reinterpret_cast<int32_t*>(to + 256)[j] = a.low32[j] / -128 * F::bias;
}

template <class F, Asking HOW>
void narrow_stream(const Job& job, int token, int begin, int end) {
  constexpr int size = 256 / F::block * F::bytes;
  const int whole = job.cols / 256, left = job.cols % 256, rest = left / F::block * F::bytes;
  alignas(32) uint8_t last[size] = {};
  const uint8_t* s = job.weights + size_t(begin) * job.row_bytes;
  ask_first(s);
  int8_t* const order = reinterpret_cast<int8_t*>(scratch(size_t(whole + 1) * met<F>));
  for (int n = 0; n < whole + (rest ? 1 : 0); n++) {
    if constexpr (F::pairs) put_narrow<F>(job.at(token, n), order + met<F> * n);
    else put_by_16<F>(job.at(token, n), order + met<F> * n);
  }
  for (int r = begin; r < end; r++) {
    s = job.weights + size_t(r) * job.row_bytes;
    float acc = 0.0f;
    for (int n = 0; n < whole; n++, s += size) {
      if (HOW != Asking::pages) ask_ahead<HOW, size>(s);
      if constexpr (F::pairs) acc = acc + narrow_value<F>(s, job.at(token, n), order + met<F> * n);
      else acc = acc + value_by_16<F>(s, job.at(token, n), order + met<F> * n);
    }
    if (rest) {
      if (job.stop - s < size) s = static_cast<const uint8_t*>(__builtin_memcpy(last, s, size_t(rest)));
      const int8_t* y = order + met<F> * whole;
      if constexpr (F::pairs) acc = acc + narrow_value<F, true>(s, job.at(token, whole), y, left / 32);
      else acc = acc + value_by_16<F>(s, job.at(token, whole), y);
    }
    job.out[token][r] = acc;
  }
}

template <class F, Asking HOW>
inline void stream_asking(const Job& job, int token, int begin, int end) {
  if constexpr (F::wide) wide_stream<F, HOW>(job, token, begin, end);
  else narrow_stream<F, HOW>(job, token, begin, end);
}

template <class F>
inline void stream(const Job& job, int token, int begin, int end) {
  const Asking how = asks<F> && asking() == Asking::pages ? Asking::lines : asking();
  if (how == Asking::both) stream_asking<F, Asking::both>(job, token, begin, end);
  else if (how == Asking::lines) stream_asking<F, Asking::lines>(job, token, begin, end);
  else if constexpr (!asks<F>) stream_asking<F, Asking::pages>(job, token, begin, end);
}

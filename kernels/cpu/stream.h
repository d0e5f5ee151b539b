// One token and types of blocks of 256: each row's bytes are read once, in order.
// A level states before this file `sums_of_block<F>`, 8 or 16; `asks<F>`; `put_in_order<F>(q, to)`; and `WideSums<F>`.

// A token's activations in the order of codes in registers, the first three blocks once more behind the last, so that
// four lie side by side wherever one begins.
template <class F>
struct Ordered {
  int8_t* y;
  int16_t* sums;
  float *d, *values;

  Ordered(const Job& job, int token, int values_held) {
    const int blocks = job.cols / 256, held = blocks + 3;
    constexpr size_t sums_bytes = sums_of_block<F> * sizeof(int16_t), each = 256 + sums_bytes + sizeof(float);
    y = reinterpret_cast<int8_t*>(scratch(held * each + size_t(values_held) * sizeof(float)));
    sums = reinterpret_cast<int16_t*>(y + size_t(held) * 256);
    d = reinterpret_cast<float*>(sums + size_t(held) * sums_of_block<F>);
    values = d + held;
    for (int n = 0; n < held; n++) {
      const Activation& a = job.at(token, n % blocks);
      put_in_order<F>(a.q, y + size_t(n) * 256);
      __builtin_memcpy(sums + n * sums_of_block<F>, sums_of_block<F> == 8 ? a.sum32 : a.sum16, sums_bytes);
      d[n] = a.d[0];
    }
  }
};

template <class F, Asking HOW>
void wide_stream(const Job& job, int token, int begin, int end) {
  constexpr int rows_at_once = 4;
  const uint8_t* s = job.weights + size_t(begin) * job.row_bytes;
  ask_first(s);
  const int blocks = job.cols / 256, ahead = 4 % blocks;
  const Ordered<F> met(job, token, rows_at_once * blocks);
  float* out = job.out[token];
  for (int r = begin; r < end; r += rows_at_once) {
    const int rows = end - r < rows_at_once ? end - r : rows_at_once, count = rows * blocks;
    int i = 0, b = 0;
    WideSums<F> sums;  // floats are made in the next step, so that nothing after them waits with them
    for (; i + 4 <= count; i += 4, s += 4 * F::bytes) {
      ask_ahead<HOW, 4 * F::bytes>(s);
      WideSums<F> now;
      now.template put<4>(s, met.y + 256 * b, met.sums + sums_of_block<F> * b);
      if (i) _mm_storeu_ps(met.values + i - 4, sums.values());
      sums = now;
      b += ahead;
      b = b >= blocks ? b - blocks : b;
    }
    if (i) _mm_storeu_ps(met.values + i - 4, sums.values());
    for (; i < count; i++, s += F::bytes) {
      sums.template put<1>(s, met.y + 256 * b, met.sums + sums_of_block<F> * b);
      met.values[i] = _mm_cvtss_f32(sums.values());
      b = b + 1 == blocks ? 0 : b + 1;
    }
    for (int k = 0; k < rows; k++) {
      float acc = 0.0f;
      for (int n = 0; n < blocks; n++) acc = __builtin_fmaf(met.d[n], met.values[k * blocks + n], acc);
      out[r + k] = acc;
    }
  }
}

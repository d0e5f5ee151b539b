// One token and types of blocks of 256: each row's bytes are read once, in order. A level states before this file
// `wide_values<F, N>(s, a, y)`: the values, as of core.h, of N blocks of weights that meet N of activations, whose
// codes `y` are in the order that the weights' have in registers; and `natural<F>()`, where that is their own.

// Ask for SIZE bytes that will be read in a quarter of a microsecond; the hardware's own prefetcher alone leaves a
// third of the bandwidth unused. Beyond the weights' end this does nothing.
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
  if constexpr (!natural<F>()) {
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

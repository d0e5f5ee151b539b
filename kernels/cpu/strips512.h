// The order in which a matrix is multiplied with many tokens: 16 rows at a time, of them 256 weights after the other.

constexpr int tokens_at_once = 128, strips_at_once = 4;

// begin(from, tokens) comes before tokens [from, from + tokens); multiply(s, n, from, tokens, acc, ahead) adds their
// products with the nth 256 weights of 16 rows, at `s`, to their sums. Rows behind the last whole strip are left alone.
template <class F, class Begin, class Multiply>
inline void by_strips(const Job& job, Begin begin, Multiply multiply) {
  const int chunks = (job.cols + 255) / 256, strips = job.begin + (job.end - job.begin) / 16 * 16;
  constexpr int size = 256 / F::block * F::bytes;
  __m512 sums[strips_at_once][tokens_at_once + 4];
  for (int from = 0; from < job.tokens; from += tokens_at_once) {
    const int tokens = job.tokens - from < tokens_at_once ? job.tokens - from : tokens_at_once;
    begin(from, tokens);
    for (int r = job.begin; r < strips; r += 16) {
      const uint8_t* strip = job.weights + size_t(r) * job.row_bytes;
      __m512* acc = sums[(r - job.begin) / 16 % strips_at_once];
      __m512 none = _mm512_setzero_ps();
      asm("" : "+v"(none));  // or `rep stos` is made of it, which is slow to begin
      for (int t = 0; t < tokens; t++) acc[t] = none;
      for (int n = 0; n < chunks; n++) {
        Ahead ahead(job, r, strips, size_t(n) * 16 * size, 16 * size, tokens / 8 + 2);
        ahead.ask();
        multiply(strip + size_t(n) * size, n, from, tokens, acc, ahead);
      }
      const int done = (r - job.begin) / 16 % strips_at_once + 1;
      if (done < strips_at_once && r + 16 < strips) continue;
      for (int t = 0; t < tokens; t++)  // a token's results together: each token has another page
        for (int s = 0; s < done; s++) {
          float* to = job.out[from + t] + r - 16 * (done - 1 - s);
          if (job.past) _mm512_stream_ps(to, sums[s][t]);
          else _mm512_storeu_ps(to, sums[s][t]);
        }
    }
  }
  if (job.past) _mm_sfence();
}

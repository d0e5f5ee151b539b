// Several residual streams: the weights that a token makes for them, and their sums by weights.

inline void divide(float* x, int n, int apart, float eps) {  // n numbers by their sum and eps
  float total = x[0];
  for (int i = 1; i < n; i++) total += x[i * apart];
  total += eps;
  for (int i = 0; i < n; i++) x[i * apart] /= total;
}

// Of (2 + n) n numbers: the weights of what is read, and for each stream those of what was given and of all streams.
void weave_streams(const float* mixes, int n, int rounds, float eps, float* read, float* write) {
  float given[most_streams], across[most_streams * most_streams];  // from each stream to each
  put(read, logistic(lanes(mixes, n)) + all(eps), n);
  put(given, all(2.0f) * logistic(lanes(mixes + n, n)), n);
  std::memcpy(across, mixes + 2 * n, sizeof(float) * n * n);
  for (int from = 0; from < n; from++) {
    float* row = across + from * n;
    const float total = soft(row, n);
    for (int to = 0; to < n; to++) row[to] = row[to] / total + eps;
  }
  for (int to = 0; to < n; to++) divide(across + to, n, n, eps);
  for (int round = 1; round < rounds; round++) {
    for (int from = 0; from < n; from++) divide(across + from * n, n, 1, eps);
    for (int to = 0; to < n; to++) divide(across + to, n, n, eps);
  }
  for (int to = 0; to < n; to++) {
    *write++ = given[to];
    for (int from = 0; from < n; from++) *write++ = across[from * n + to];
  }
}

// `m` sums of streams x [n][d], in order; behind a part of y [d] if there is one.
void blend_streams(const float* x, int n, const float* y, const float* weights, int m, int d, float* out) {
  for (int i = 0; i < d; i += 16) {
    const int part = d - i < 16 ? d - i : 16;
    const float* w = weights;
    for (int sum = 0; sum < m; sum++) {
      Lanes v = all(*w++) * lanes(y ? y + i : x + i, part);
      for (int s = y ? 0 : 1; s < n; s++) v = v + all(*w++) * lanes(x + size_t(s) * d + i, part);
      put(out + size_t(sum) * d + i, v, part);
    }
  }
}

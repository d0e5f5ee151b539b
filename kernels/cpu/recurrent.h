// Recurrent layers. Lanes are channels, or columns of a head's matrix: sums over its rows are chains from the first row
// to the last, the same whoever goes through how many rows, columns or tokens at once.

// TAPS 0: as many as there are.
template <int TAPS>
inline void convolve_rows(const Convolution& c, const Paths& p, int sequence, int first, int count) {
  const int taps = TAPS ? TAPS : c.taps, begin = p.starts[sequence], rows = p.rows(sequence);
  const size_t slot = size_t(c.taps) * c.slot_row;
  const float* past = p.source[sequence] < 0 ? nullptr : c.slots + p.source[sequence] * slot;
  // What the convolution sees of channel i: row r counts from the oldest that is kept.
  auto seen = [&](int r, int i, int m) {
    if (r < taps) return past ? lanes(past + size_t(r) * c.slot_row + i, m) : all(0.0f);
    const size_t t = size_t(begin + r - taps);
    const Lanes x = lanes(c.x + t * c.x_row + i, m);
    return c.before ? x * lanes(c.before + t * c.before_row + i, m) : x;
  };
  for (int r = 0; r < rows; r++)
    for (int i = first; i < first + count; i += 16) {
      const int m = first + count - i < 16 ? first + count - i : 16;
      Lanes y = all(0.0f);
      for (int j = 0; j <= taps; j++) y = fma(lanes(c.weight + size_t(j) * c.channels + i, m), seen(r + j, i, m), y);
      if (c.bias) y = y + lanes(c.bias + i, m);
      if (c.silu) y = y * logistic(y);
      if (c.after) y = y * lanes(c.after + size_t(begin + r) * c.after_row + i, m);
      put(c.y + size_t(begin + r) * c.channels + i, y, m);
    }
  auto keep = [&](int to, int after) {
    for (int r = 0; to >= 0 && r < taps; r++)
      for (int i = first; i < first + count; i += 16) {
        const int m = first + count - i < 16 ? first + count - i : 16;
        put(c.slots + to * slot + size_t(r) * c.slot_row + i, seen(after + r, i, m), m);
      }
  };
  // Into the source last, where it is one of the two; the later row is read before an earlier one is written over.
  const int target = p.target[sequence], kept = p.kept[sequence];
  if (kept != p.source[sequence] && kept != target) keep(kept, p.kept_after[sequence]);
  keep(target, rows);
  if (kept == p.source[sequence] && kept != target) keep(kept, p.kept_after[sequence]);
}

void convolve_band(const Convolution& c, const Paths& p, int sequence, int first, int count) {
  if (c.taps == 2) return convolve_rows<2>(c, p, sequence, first, count);
  if (c.taps == 3) return convolve_rows<3>(c, p, sequence, first, count);
  convolve_rows<0>(c, p, sequence, first, count);
}

// y = scale * x / sqrt(sum of squares + eps)
inline void resize(const float* x, int n, float eps, float scale, float* y) {
  Lanes squares = all(0.0f);
  for (int i = 0; i < n; i += 16) {
    const Lanes v = lanes(x + i, n - i < 16 ? n - i : 16);
    squares = fma(v, v, squares);
  }
  const Lanes factor = all(scale / __builtin_sqrtf(sum(squares) + eps));
  for (int i = 0; i < n; i += 16) {
    const int m = n - i < 16 ? n - i : 16;
    put(y + i, lanes(x + i, m) * factor, m);
  }
}

// Of all heads what is left of the old, exp(a * softplus(step + dt_bias)), and what `learnt` says of the new.
template <class Rule, class Learnt>
inline void ready_heads(const Rule& r, int token, const float* step, const Learnt& learnt) {
  for (int h = 0; h < r.heads; h += 16) {
    const int m = r.heads - h < 16 ? r.heads - h : 16;
    float left[16], much[16];
    const Lanes rate = softplus(lanes(step + h, m) + lanes(r.rule.dt_bias + h, m));
    put(left, exponential(rate * lanes(r.rule.a + h, m)));
    put(much, learnt(rate, h, m));
    for (int i = 0; i < m; i++) {
      float* to = r.forget(h + i, token);
      to[0] = left[i];
      to[1] = much[i];
    }
  }
}

void delta_ready(const Delta& d, int token) {
  const float* row = d.qkv + token * d.qkv_row;
  const float scale = 1.0f / __builtin_sqrtf(float(d.dk));
  for (int h = 0; h < d.rule.n_key; h++) {
    float* to = d.query_of(h, token);
    resize(row + size_t(h) * d.dk, d.dk, d.rule.eps, scale, to);
    resize(row + size_t(d.rule.n_key + h) * d.dk, d.dk, d.rule.eps, 1.0f, to + d.dk);
  }
  const float* beta = d.beta + token * d.beta_row;
  ready_heads(d, token, d.alpha + token * d.alpha_row,
              [&](Lanes, int h, int m) { return logistic(lanes(beta + h, m)); });
}

void kimi_ready(const Kimi& k, int head, int token) {
  const size_t at = size_t(head) * k.dk;
  const float *fade = k.fade + token * k.fade_row + at, *bias = k.rule.dt_bias + at;
  float *key = k.key(head, token), *left = k.left(head, token), *asked = k.asked(head, token);
  resize(k.q + token * k.q_row + at, k.dk, k.rule.key_eps, 1.0f / __builtin_sqrtf(float(k.dk)), k.query(head, token));
  resize(k.k + token * k.k_row + at, k.dk, k.rule.key_eps, 1.0f, key);
  const Lanes a = all(k.rule.a[head]), floor = all(k.rule.floor);
  for (int i = 0; i < k.dk; i += 16) {
    const int m = k.dk - i < 16 ? k.dk - i : 16;
    const Lanes step = lanes(fade + i, m) + lanes(bias + i, m);
    const Lanes g = exponential(k.rule.floor < 0.0f ? logistic(all(0.0f) - step * a) * floor : softplus(step) * a);
    put(left + i, g, m);
    put(asked + i, g * lanes(key + i, m), m);
  }
  float much[16];
  put(much, logistic(lanes(k.beta + token * k.beta_row + head, 1)));
  k.forget(head, token)[1] = much[0];
}

void space_ready(const Space& s, int token) {
  ready_heads(s, token, s.dt + token * s.dt_row, [](Lanes rate, int, int) { return rate; });
}

// What a token's value, of which the matrix has already `seen`, adds to its key's row.
inline Lanes change(const Delta&, const float* forget, Lanes v, Lanes seen) {
  return all(forget[1]) * (v - all(forget[0]) * seen);
}
inline Lanes change(const Kimi&, const float* forget, Lanes v, Lanes seen) { return all(forget[1]) * (v - seen); }
inline Lanes change(const Space&, const float* forget, Lanes v, Lanes) { return all(forget[1]) * v; }

// What is left of row i of a head's matrix: of all rows the same part, or of each its own.
struct SamePart {
  Lanes part;
  Lanes of(int) const { return part; }
};
struct OwnParts {
  const float* parts;
  Lanes of(int i) const { return all(parts[i]); }
};
template <class Rule>
inline SamePart left_of(const Rule& r, int head, int token, int) {
  return {all(r.forget(head, token)[0])};
}
inline OwnParts left_of(const Kimi& k, int head, int token, int first) { return {k.left(head, token) + first}; }

inline Lanes gated(const Delta& d, int head, int token, int i, int m) {
  const Lanes g = lanes(d.z + token * d.z_row + size_t(head) * d.dv + i, m);
  return d.rule.sigmoid ? logistic(g) : g * logistic(g);
}
inline Lanes gated(const Kimi& k, int head, int token, int i, int m) {
  return logistic(lanes(k.gate + token * k.gate_row + size_t(head) * k.dv + i, m));
}

// What a head gives: its norm, its weight and the gate, in place.
template <class Rule>
inline void gate_head(const Rule& r, int head, int token) {
  float* y = r.out(head, token);
  norm_row(y, r.dv, r.rule.norm, nullptr, r.rule.eps, y);
  for (int i = 0; i < r.dv; i += 16) {
    const int m = r.dv - i < 16 ? r.dv - i : 16;
    put(y + i, lanes(y + i, m) * gated(r, head, token, i, m), m);
  }
}

template <class Rule>
void gate_heads(const Rule& r, int token) {
  for (int h = 0; h < r.heads; h++) gate_head(r, h, token);
}

// What a token gives: its own input and the gate by head, then the norm by group, in place.
void space_gate(const Space& s, int token) {
  for (int h = 0; h < s.heads; h++) {
    const float *x = s.value(h, token), *z = s.z + token * s.z_row + size_t(h) * s.dv;
    float* y = s.out(h, token);
    for (int i = 0; i < s.dv; i += 16) {
      const int m = s.dv - i < 16 ? s.dv - i : 16;
      const Lanes g = lanes(z + i, m);
      put(y + i, fma(all(s.rule.d[h]), lanes(x + i, m), lanes(y + i, m)) * (g * logistic(g)), m);
    }
  }
  const int heads = s.heads / s.rule.n_group;
  for (int h = 0; h < s.heads; h += heads) {
    float* y = s.out(h, token);
    norm_row(y, heads * s.dv, s.rule.norm + size_t(h) * s.dv, nullptr, s.rule.eps, y);
  }
}

// N times sixteen columns of some rows of a matrix; of the last sixteen there may be fewer.
template <int N>
struct Columns {
  static constexpr int wide = 16 * N;
  size_t row;  // floats from a row to the next
  int last;    // of the last sixteen

  Lanes get(const float* p, int n) const {
    return n == N - 1 && last < 16 ? lanes(p + 16 * n, last) : lanes(p + 16 * n);
  }
  void set(float* p, int n, Lanes x) const {
    if (n == N - 1 && last < 16) return put(p + 16 * n, x, last);
    put(p + 16 * n, x);
  }

  // total += S'k
  void see(const float* s, const float* k, int rows, Lanes* total) const {
    Lanes sums[N];
    for (int n = 0; n < N; n++) sums[n] = total[n];
    for (int i = 0; i < rows; i++, s += row)
      for (int n = 0; n < N; n++) sums[n] = fma(get(s, n), all(k[i]), sums[n]);
    for (int n = 0; n < N; n++) total[n] = sums[n];
  }

  // S = left * S + k change', into `to`; y += S'q, and, NEXT, total += S'next.
  template <bool NEXT, class Left>
  void learn(const float* s, float* to, const float* k, const float* q, const float* next, int rows, Left left,
             const Lanes* change, Lanes* y, Lanes* total) const {
    Lanes c[N], out[N], sums[N];
    for (int n = 0; n < N; n++) {
      c[n] = change[n];
      out[n] = y[n];
      sums[n] = NEXT ? total[n] : y[n];
    }
    for (int i = 0; i < rows; i++, s += row, to += row) {
      const Lanes ki = all(k[i]), qi = all(q[i]), after = NEXT ? all(next[i]) : qi, g = left.of(i);
      for (int n = 0; n < N; n++) {
        const Lanes v = fma(ki, c[n], g * get(s, n));
        set(to, n, v);
        out[n] = fma(v, qi, out[n]);
        if (NEXT) sums[n] = fma(v, after, sums[n]);
      }
    }
    for (int n = 0; n < N; n++) {
      y[n] = out[n];
      if (NEXT) total[n] = sums[n];
    }
  }

  // The same sums in memory, sixteen floats each.
  void read(const float* from, Lanes* to) const {
    for (int n = 0; n < N; n++) to[n] = lanes(from + 16 * n);
  }
  void write(const Lanes* from, float* to) const {
    for (int n = 0; n < N; n++) put(to + 16 * n, from[n]);
  }
};

template <int N, class Rule>
void band_of_tokens(const Rule& r, const Paths& p, int sequence, int head, int first, int last, float* s) {
  const Columns<N> there = {size_t(r.dv), last}, whole = {matrix_band, 16};
  auto copy = [&](const float* from, size_t from_row, float* to, size_t to_row) {
    for (int i = 0; i < r.dk; i++) std::memcpy(to + i * to_row, from + i * from_row, (16 * (N - 1) + last) * 4);
  };
  const int begin = p.starts[sequence], end = p.starts[sequence + 1], source = p.source[sequence];
  std::memset(s, 0, size_t(r.dk) * matrix_band * 4);
  if (source >= 0) copy(r.slot(source, head) + first, there.row, s, whole.row);
  auto keep = [&](int slot) { copy(s, whole.row, r.slot(slot, head) + first, there.row); };
  Lanes seen[N], told[N], y[N];
  for (int n = 0; n < N; n++) seen[n] = all(0.0f);
  if constexpr (Rule::asks)
    if (end > begin) whole.see(s, r.asked(head, begin), r.dk, seen);
  for (int t = begin; t < end; t++) {
    const float *q = r.query(head, t), *k = r.key(head, t), *v = r.value(head, t) + first, *forget = r.forget(head, t);
    for (int n = 0; n < N; n++) {
      told[n] = change(r, forget, there.get(v, n), seen[n]);
      y[n] = seen[n] = all(0.0f);
    }
    if (t + 1 < end) {
      __builtin_prefetch(r.value(head, t + 1) + first);
      __builtin_prefetch(r.value(head, t + 1) + first + 16);
    }
    const auto left = left_of(r, head, t, 0);
    const float* next = nullptr;
    if constexpr (Rule::asks) next = t + 1 < end ? r.asked(head, t + 1) : nullptr;
    if (next) {
      whole.template learn<true>(s, s, k, q, next, r.dk, left, told, y, seen);
    } else {
      whole.template learn<false>(s, s, k, q, next, r.dk, left, told, y, nullptr);
    }
    for (int n = 0; n < N; n++) there.set(r.out(head, t) + first, n, y[n]);
    if (p.kept[sequence] >= 0 && t - begin + 1 == p.kept_after[sequence]) keep(p.kept[sequence]);
  }
  keep(p.target[sequence]);
}

template <class Rule>
void learn_tokens(const Rule& r, const Paths& p, int sequence, int head, int first, float* scratch) {
  const int n = r.dv - first < matrix_band ? r.dv - first : matrix_band;
  if (n > 16) return band_of_tokens<2>(r, p, sequence, head, first, n - 16, scratch);
  band_of_tokens<1>(r, p, sequence, head, first, n, scratch);
}

// Rows in the order they lie in memory, some at once through all columns, which stay in the first cache meanwhile.
constexpr int rows_a_turn = 4;

template <class Work>
inline void in_turns(int rows, int columns, const Work& work) {
  for (int i = 0; i < rows; i += rows_a_turn) {
    const int count = rows - i < rows_a_turn ? rows - i : rows_a_turn;
    int j = 0;
    for (; j + 32 <= columns; j += 32) work(Columns<2>{size_t(columns), 16}, i, j, count);
    for (; j < columns; j += 16) work(Columns<1>{size_t(columns), columns - j < 16 ? columns - j : 16}, i, j, count);
  }
}

template <class Rule>
void learn_token(const Rule& r, const Paths& p, int sequence, int head, const float* next, float* scratch) {
  const int token = p.starts[sequence], dk = r.dk, dv = r.dv, width = (dv + 15) / 16 * 16;
  const float *q = r.query(head, token), *k = r.key(head, token), *forget = r.forget(head, token);
  float *to = r.slot(p.target[sequence], head), *seen = scratch, *told = seen + width, *y = told + width;
  if (p.source[sequence] < 0) std::memset(to, 0, r.matrix() * 4);
  const float* s = p.source[sequence] < 0 ? to : r.slot(p.source[sequence], head);
  std::memset(seen, 0, size_t(width) * 4);
  std::memset(y, 0, size_t(width) * 4);
  if constexpr (Rule::asks) {
    const float* asked = r.asked(head, token);
    in_turns(dk, dv, [&](auto columns, int i, int j, int count) {
      Lanes total[columns.wide / 16];
      columns.read(seen + j, total);
      columns.see(s + size_t(i) * dv + j, asked + i, count, total);
      columns.write(total, seen + j);
    });
  }
  for (int j = 0; j < dv; j += 16)
    put(told + j, change(r, forget, lanes(r.value(head, token) + j, dv - j < 16 ? dv - j : 16), lanes(seen + j)));
  in_turns(dk, dv, [&](auto columns, int i, int j, int count) {
    const size_t at = size_t(i) * dv + j;
    for (int n = 0; next && n < columns.wide * count; n += 16)
      __builtin_prefetch(next + size_t(i) * dv + size_t(j) * count + n, 0, 2);
    Lanes more[columns.wide / 16], out[columns.wide / 16];
    columns.read(told + j, more);
    columns.read(y + j, out);
    const auto left = left_of(r, head, token, i);
    columns.template learn<false>(s + at, to + at, k + i, q + i, nullptr, count, left, more, out, nullptr);
    columns.write(out, y + j);
  });
  std::memcpy(r.out(head, token), y, size_t(dv) * 4);
  if (p.kept[sequence] >= 0) std::memcpy(r.slot(p.kept[sequence], head), to, r.matrix() * 4);
}

template <class Rule>
void token_of_delta(const Rule& r, const Paths& p, int sequence, int head, const float* next, float* scratch) {
  learn_token(r, p, sequence, head, next, scratch);
  gate_head(r, head, p.starts[sequence]);
}

// A token through a block of channels: from its states `s` into `to`.
inline void learn_block(const Channels& c, int token, int first, const float* s, float* to) {
  const int m = c.channels - first < 16 ? c.channels - first : 16;
  const size_t t = size_t(token);
  const float *a = c.a + size_t(first) * c.dk, *b = c.b + t * c.b_row, *q = c.c + t * c.c_row;
  const Lanes x = lanes(c.x + t * c.x_row + first, m), z = lanes(c.z + t * c.z_row + first, m);
  const Lanes step = softplus(lanes(c.dt + t * c.dt_row + first, m)), told = step * x;
  Lanes y = all(0.0f);
  for (int n = 0; n < c.dk; n++) {
    const Lanes v = fma(all(b[n]), told, exponential(step * lanes(a + 16 * n)) * lanes(s + 16 * n));
    put(to + 16 * n, v);
    y = fma(v, all(q[n]), y);
  }
  put(c.y + t * c.channels + first, fma(lanes(c.d + first, m), x, y) * (z * logistic(z)), m);
}

// So many channels go through the tokens at once that the first cache keeps their states, and a token's lie together.
constexpr int channel_band = 128;

void learn_channels(const Channels& c, const Paths& p, int sequence, int first, int count) {
  const int begin = p.starts[sequence], end = p.starts[sequence + 1], source = p.source[sequence];
  const int target = p.target[sequence], kept = p.kept[sequence];
  for (int from = first, until; from < first + count; from = until) {
    until = first + count - from < channel_band ? first + count : from + channel_band;
    const size_t bytes = (until - from + 15) / 16 * c.block() * sizeof(float);
    float* to = c.slot(target, from);
    const float* s = source < 0 ? to : c.slot(source, from);
    if (source < 0) std::memset(to, 0, bytes);
    if (begin == end && s != to) std::memcpy(to, s, bytes);
    for (int t = begin; t < end; t++, s = to) {
      for (int i = from; i < until; i += 16) {
        const size_t at = size_t(i - from) * c.dk;
        learn_block(c, t, i, s + at, to + at);
      }
      if (kept >= 0 && kept != target && t - begin + 1 == p.kept_after[sequence])
        std::memcpy(c.slot(kept, from), to, bytes);
    }
  }
}

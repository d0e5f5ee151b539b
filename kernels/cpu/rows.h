// Kernels of single rows: norms, rotations, gates, routing, and the writing of the cache.

void norm_row(const float* x, int n, const float* weight, const float* bias, float eps, float* y) {
  Lanes squares = all(0.0f);
  int whole = n / 16 * 16, rest = n - whole;
  for (int i = 0; i < whole; i += 16) squares = fma(lanes(x + i), lanes(x + i), squares);
  if (rest) squares = fma(lanes(x + whole, rest), lanes(x + whole, rest), squares);
  Lanes scale = all(1.0f / __builtin_sqrtf(sum(squares) / float(n) + eps));
  for (int i = 0; i < n; i += 16) {
    int m = n - i < 16 ? n - i : 16;
    Lanes v = lanes(x + i, m) * scale;
    if (weight) v = v * lanes(weight + i, m);
    if (bias) v = v + lanes(bias + i, m);
    put(y + i, v, m);
  }
}

void centre_row(const float* x, int n, float* y) {
  Lanes total = all(0.0f);
  for (int i = 0; i < n; i += 16) total = total + lanes(x + i, n - i < 16 ? n - i : 16);
  Lanes mean = all(sum(total) / float(n));
  for (int i = 0; i < n; i += 16) {
    int m = n - i < 16 ? n - i : 16;
    put(y + i, lanes(x + i, m) - mean, m);
  }
}

void residual_row(const float* x, float scale, int n, float* y) {
  for (int i = 0; i < n; i += 16) {
    int m = n - i < 16 ? n - i : 16;
    put(y + i, lanes(x + i, m) + all(scale) * lanes(y + i, m), m);
  }
}

void rotate_token(float* x, int heads, int d, int n_rot, bool halves, const float* cos, const float* sin) {
  int half = n_rot / 2;
  for (int h = 0; h < heads; h++, x += d) {
    if (!halves) {
      for (int i = 0; i < half; i++) {
        float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = __builtin_fmaf(a, cos[i], -(b * sin[i]));
        x[2 * i + 1] = __builtin_fmaf(b, cos[i], a * sin[i]);
      }
      continue;
    }
    for (int i = 0; i < half; i += 16) {
      int m = half - i < 16 ? half - i : 16;
      Lanes a = lanes(x + i, m), b = lanes(x + half + i, m), c = lanes(cos + i, m), s = lanes(sin + i, m);
      put(x + i, fma(a, c, all(0.0f) - b * s), m);
      put(x + half + i, fma(b, c, a * s), m);
    }
  }
}

void gate_row(int kind, float most, float most_up, const float* gate, const float* up, int n,
              float* y) {
  const bool one = kind >= 5 && kind < 11 && kind != 6;  // number for the whole row
  for (int i = 0; i < n; i += 16) {
    int m = n - i < 16 ? n - i : 16;
    Lanes u = lanes(up + i, m), g = gate && !one ? lanes(gate + i, m) : u, v = u;
    if (kind == 0) v = g * logistic(g) * u;
    if (kind == 1) {  // 0.5 * (1 + tanh(z)) is the logistic function of 2 z
      Lanes z = all(1.5957691216f) * fma(all(0.044715f) * g * g, g, g);
      v = g * logistic(z) * u;
    }
    if (kind == 2) v = larger(all(0.0f), g + all(0.0f)) * u;  // + 0: no zero is negative, and NaN stays
    if (kind == 3) v = larger(all(0.0f), u) * larger(all(0.0f), u);
    if (kind == 4) {
      g = smaller(all(7.0f), g);
      u = smaller(all(7.0f), larger(all(-7.0f), u));
      v = g * logistic(all(1.702f) * g) * (u + all(1.0f));
    }
    if (kind == 5) v = u * logistic(all(gate[0]));
    if (kind == 6) v = u * logistic(g);
    if (kind == 7) {  // a number times the hyperbolic tangent of what is divided by it
      const Lanes limit = all(gate[0]);
      v = limit * (logistic((u + u) / limit) * all(2.0f) - all(1.0f));
    }
    if (kind == 8) v = smaller(all(gate[0]), larger(all(-gate[0]), u));
    if (kind == 9) v = u * all(gate[0]);
    if (kind == 10) v = u * softplus(all(gate[0]));
    if (kind == 11) v = u * softplus(g);
    if (kind == 12) v = smaller(all(most), g * logistic(g)) * smaller(all(most), larger(all(-most), u));
    if (kind == 13) {
      g = smaller(all(most), g);
      v = g * logistic(g) * smaller(all(most), larger(all(-most), u));
    }
    if (kind == 14) {
      v = all(most) * tangent(g / all(most)) * logistic(g);
      v = v * (most_up > 0.0f ? all(most_up) * tangent(u / all(most_up)) : u);
    }
    put(y + i, v, m);
  }
}

// x becomes e^(x - the largest), and their sum is returned.
inline float soft(float* x, int n) {
  Lanes total = all(0.0f);
  float top = x[0];
  for (int i = 1; i < n; i++) top = x[i] > top ? x[i] : top;
  for (int i = 0; i < n; i += 16) {
    int m = n - i < 16 ? n - i : 16;
    put(x + i, exponential(lanes(x + i, m) - all(top)), m);
    total = total + lanes(x + i, m);
  }
  return sum(total);
}

// The places of the k largest of x, largest first, equals by place; NaN counts as the least.
inline void best(const float* x, int n, int k, int32_t* places) {
  int held = 0;
  for (int i = 0; i < n; i++) {
    if (held == k && !(x[i] > x[places[k - 1]])) continue;
    int at = held < k ? held++ : k - 1;
    for (; at > 0 && x[i] > x[places[at - 1]]; at--) places[at] = places[at - 1];
    places[at] = i;
  }
}

void choose_experts(const Router& r, const float* logits, int32_t* ids, float* weights) {
  float scores[most_experts], selection[most_experts], merit[most_experts];
  int32_t order[most_experts];
  std::memcpy(scores, logits, sizeof(float) * r.experts);
  if (r.gating == Gating::softmax) {
    Lanes total = all(soft(scores, r.experts));
    for (int i = 0; i < r.experts; i += 16) {
      int m = r.experts - i < 16 ? r.experts - i : 16;
      put(&scores[i], lanes(&scores[i], m) / total, m);
    }
  } else if (r.gating == Gating::sigmoid) {
    for (int i = 0; i < r.experts; i += 16) {
      int m = r.experts - i < 16 ? r.experts - i : 16;
      put(&scores[i], logistic(lanes(&scores[i], m)), m);
    }
  } else if (r.gating == Gating::sqrt_softplus) {
    for (int i = 0; i < r.experts; i++)
      scores[i] = __builtin_sqrtf(scores[i] > 20.0f ? scores[i] : ::log1pf(::expf(scores[i])));
  }
  const float* plain = r.groups > 1 ? scores : logits;  // scores of logits that differ can round to equals
  for (int i = 0; i < r.experts; i++) selection[i] = r.bias ? scores[i] + r.bias[i] : plain[i];
  if (r.groups > 1) {  // only the groups whose two best sum highest
    int size = r.experts / r.groups;
    for (int g = 0; g < r.groups; g++) {
      int32_t two[2] = {};
      best(&selection[g * size], size, size < 2 ? 1 : 2, two);
      merit[g] = selection[g * size + two[0]] + (size < 2 ? 0.0f : selection[g * size + two[1]]);
    }
    best(merit, r.groups, r.groups_used, order);
    for (int g = 0; g < r.groups; g++) {
      bool used = false;
      for (int j = 0; j < r.groups_used; j++) used = used || order[j] == g;
      for (int i = 0; i < size && !used; i++) selection[g * size + i] = -INFINITY;
    }
  }
  best(selection, r.experts, r.chosen, ids);
  const float share = 1.0f / float(r.chunk);  // llama.cpp's, which is below the chunk for 41 / 41
  for (int j = 0; j < r.chosen && r.chunk > 1; j++) ids[j] = int32_t(float(ids[j]) * share);
  float total = 0.0f;
  for (int j = 0; j < r.chosen; j++) weights[j] = scores[ids[j]];
  if (r.gating == Gating::softmax_weight) {
    float all_of = soft(weights, r.chosen);
    for (int j = 0; j < r.chosen; j++) weights[j] /= all_of;
  }
  for (int j = 0; j < r.chosen; j++) total += weights[j];
  total = total > 6.103515625e-5f ? total : 6.103515625e-5f;  // llama.cpp's floor
  for (int j = 0; j < r.chosen; j++) {
    if (r.renormalize) weights[j] /= total;
    weights[j] *= r.scale;
    if (r.each) weights[j] *= r.each[ids[j]];
  }
}

inline uint16_t to_bfloat(float x) {
  uint32_t bits = bits_of(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16 | 64);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline uint16_t to_half(float x) {
  uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  if (size > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (size < 0x38800000) {  // below the smallest normal: 0.5 has steps of 2^-24
    float least;
    std::memcpy(&least, &size, 4);
    return uint16_t(sign | (bits_of(least + 0.5f) - bits_of(0.5f)));
  }
  size = size + 0xfff + (size >> 13 & 1);
  return uint16_t(sign | (size >= 0x47800000 ? 0x7c00 : (size - 0x38000000) >> 13));
}

// One head of one token, `n` elements `stride` apart; `scales` of each 32, `scale_stride` apart.
inline void store_head(Number number, const float* x, int n, char* to, size_t stride, uint16_t* scales,
                       size_t scale_stride) {
  if (number == Number::f32)
    for (int i = 0; i < n; i++) reinterpret_cast<float*>(to)[i * stride] = x[i];
  if (number == Number::f16)
    for (int i = 0; i < n; i++) reinterpret_cast<uint16_t*>(to)[i * stride] = to_half(x[i]);
  if (number == Number::bf16)
    for (int i = 0; i < n; i++) reinterpret_cast<uint16_t*>(to)[i * stride] = to_bfloat(x[i]);
  if (number == Number::q8_0)
    for (int from = 0; from < n; from += 32, scales += scale_stride) {
      int end = from + 32 < n ? from + 32 : n;
      uint32_t most = 0;  // the bits of sizes are in the order of sizes, NaN above all
      for (int i = from; i < end; i++) {
        const uint32_t size = bits_of(x[i]) & 0x7fffffff;
        most = size > most ? size : most;
      }
      float scale = of_bits(most) / 127.0f, inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
      const float magic = 12582912.0f;
      for (int i = from; i < end; i++)
        reinterpret_cast<int8_t*>(to)[i * stride] = int8_t(bits_of(x[i] * inverse + magic));
      *scales = to_half(scale);
    }
}

// Keys of a token lie a cache line apart, and a pass of the weights has driven them all out: to ask for them at once
// takes a tenth of the time of writing to one after the other.
inline void ask_for(char* p, size_t lines, size_t stride) {
  for (size_t i = 0; i < lines; i++) __builtin_prefetch(p + i * stride, 1, 3);
}

void store_token(const Cache& c, int64_t slot, const float* key, const float* value) {
  const int64_t block = slot / cache_block, at = slot % cache_block;
  const size_t bytes = c.number == Number::f32 ? 4 : c.number == Number::q8_0 ? 1 : 2;
  const size_t key_groups = size_t(c.dk + 31) / 32, value_groups = size_t(c.dv + 31) / 32;
  for (int h = 0; h < c.heads; h++) {
    const size_t head = size_t(block) * c.heads + h, stride = cache_block * bytes;
    ask_for(c.keys + head * c.dk * stride + at * bytes, size_t(c.dk), stride);
    ask_for(c.values + (head * cache_block + at) * c.dv * bytes, (c.dv * bytes + 63) / 64, 64);
  }
  for (int h = 0; h < c.heads; h++) {
    size_t head = size_t(block) * c.heads + h;
    uint16_t* key_scales = c.key_scales ? c.key_scales + head * key_groups * cache_block + at : nullptr;
    store_head(c.number, key + size_t(h) * c.dk, c.dk, c.keys + (head * c.dk * cache_block + at) * bytes, cache_block,
               key_scales, cache_block);
    uint16_t* value_scales = c.value_scales ? c.value_scales + (head * cache_block + at) * value_groups : nullptr;
    store_head(c.number, value + size_t(h) * c.dv, c.dv, c.values + (head * cache_block + at) * c.dv * bytes, 1,
               value_scales, 1);
  }
}

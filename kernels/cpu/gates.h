// The activations between up and down, from operations that every instruction set rounds alike.

// 2^n, and e^r - 1, where e^x is the product of 2^n and e^r.
struct Power {
  uint32_t n;
  float p;
};

inline Power power(float x) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: the sum is rounded to an integer
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  float n = __builtin_fmaf(x, 1.44269504f, magic) - magic;
  float r = __builtin_fmaf(n, -0.693145752f, x);
  r = __builtin_fmaf(n, -1.42860677e-6f, r);
  float p = 1.98756912e-4f;
  p = __builtin_fmaf(p, r, 1.39819994e-3f);
  p = __builtin_fmaf(p, r, 8.33345205e-3f);
  p = __builtin_fmaf(p, r, 4.16657962e-2f);
  p = __builtin_fmaf(p, r, 0.166666657f);
  p = __builtin_fmaf(p, r, 0.5f);
  return {uint32_t(int32_t(n)) << 23, __builtin_fmaf(p, r * r, r)};
}

inline float exponential(float x) {
  const Power e = power(x);
  return as_float(bits_of(e.p + 1.0f) + e.n);
}

inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

inline float tangent(float x) {  // the hyperbolic one: p / (p + 2) of p = e^2x - 1, which small x leave its digits
  const Power e = power(x + x);
  const float two = as_float(bits_of(1.0f) + e.n), p = __builtin_fmaf(two, e.p, two - 1.0f);
  return p / (p + 2.0f);
}

template <Curve KIND>
inline float gated(float gate, float up, float most, float most_up) {
  if (KIND == Curve::swiglu) return gate * sigmoid(gate) * up;
  if (KIND == Curve::geglu)  // half of 1 + tanh(x) is sigmoid(2 x)
    return gate * sigmoid(1.5957691216f * (gate + 0.044715f * gate * gate * gate)) * up;
  if (KIND == Curve::reglu) return (gate > 0.0f ? gate : gate != gate ? gate : 0.0f) * up;
  if (KIND == Curve::relu2) return up > 0.0f ? up * up : up != up ? up : 0.0f;
  if (KIND == Curve::swiglu_within || KIND == Curve::swiglu_under) {
    if (KIND == Curve::swiglu_within) gate = gate * sigmoid(gate);
    gate = gate > most ? most : gate;
    if (KIND == Curve::swiglu_under) gate = gate * sigmoid(gate);
    up = up > most ? most : up;
    up = up < -most ? -most : up;
    return gate * up;
  }
  if (KIND == Curve::situ) {
    gate = most * tangent(gate / most) * sigmoid(gate);
    return gate * (most_up > 0.0f ? most_up * tangent(up / most_up) : up);
  }
  gate = gate > 7.0f ? 7.0f : gate;
  up = up > 7.0f ? 7.0f : up;
  up = up < -7.0f ? -7.0f : up;
  return gate * sigmoid(1.702f * gate) * (up + 1.0f);
}

template <Curve KIND>
inline void gate_all(const float* gate, float* up, int n, Gate kind) {
  for (int i = 0; i < n; i++) up[i] = gated<KIND>(gate[i], up[i], kind.most, kind.most_up);
}

void gate_rows(Gate kind, const float* gate, float* up, int n) {
  switch (kind.curve) {
    case Curve::swiglu: return gate_all<Curve::swiglu>(gate, up, n, kind);
    case Curve::geglu: return gate_all<Curve::geglu>(gate, up, n, kind);
    case Curve::reglu: return gate_all<Curve::reglu>(gate, up, n, kind);
    case Curve::relu2: return gate_all<Curve::relu2>(up, up, n, kind);
    case Curve::swiglu_oai: return gate_all<Curve::swiglu_oai>(gate, up, n, kind);
    case Curve::swiglu_within: return gate_all<Curve::swiglu_within>(gate, up, n, kind);
    case Curve::swiglu_under: return gate_all<Curve::swiglu_under>(gate, up, n, kind);
    case Curve::situ: return gate_all<Curve::situ>(gate, up, n, kind);
  }
}

// to = to + weight * from, both rounded.
void add_row(float* to, float weight, const float* from, int n) {
  for (int i = 0; i < n; i++) to[i] = to[i] + weight * from[i];
}

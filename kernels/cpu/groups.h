// The integer sums from sums of 16 products, for levels that state group_sums<BIAS>(q, a, to): the 16 sums of
// (q - BIAS) * y of 16 each.

template <class F>
inline int32_t scaled_sum(const Codes& c, const Activation& a) {
  alignas(64) int32_t dot[16];
  group_sums<F::bias>(c.q, a, dot);
  int32_t total = 0;
  for (int g = 0; g < 16; g++) total += c.scale[g] * dot[g];
  return total;
}

inline int32_t low_sum(const Codes& c, const Activation& a) {
  int32_t low = 0;
  for (int g = 0; g < 16; g++) low += c.low[g] * a.sum16[g];
  return low;
}

template <int BIAS>
inline void sums_of_32(const uint8_t* q, const Activation& a, int32_t* to) {
  alignas(64) int32_t dot[16];
  group_sums<BIAS>(q, a, dot);
  for (int j = 0; j < 8; j++) to[j] = dot[2 * j] + dot[2 * j + 1];
}

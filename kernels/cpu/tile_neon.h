// Many tokens: 16 rows x 256 weights are unpacked once into lanes = rows, then 4 tokens share each load.

inline void put_low(int16x8_t low, int row, int8_t (*to)[64]) {
  const uint64_t bytes = vget_lane_u64(vreinterpret_u64_s8(vmovn_s16(low)), 0);
  const uint32_t first = uint32_t(bytes), second = uint32_t(bytes >> 32);
  __builtin_memcpy(to[0] + 4 * row, &first, 4);
  __builtin_memcpy(to[1] + 4 * row, &second, 4);
}

template <class F>
inline void pack_wide_row(const uint8_t* s, int row, int8_t* q, Tile& tile) {
  using R = Registers<F>;
  const R r(s);
  uint8x16_t codes[16];
  r.codes(codes);
  for (int g = 0; g < 16; g++) {
    if (R::shifted && g / 2 % 4 % 3) codes[g] = vshlq_u8(codes[g], vdupq_n_s8(int8_t(-2 * (g / 2 % 4))));
    vst1q_s8(q + 16 * g, vreinterpretq_s8_u8(R::bias ? vsubq_u8(codes[g], byte16(R::bias)) : codes[g]));
  }
  const Scales sc = r.scales();
  int16_t scale[16];
  vst1q_s16(scale, sc.scale[0]);
  if (!F::pairs) vst1q_s16(scale + 8, sc.scale[1]);
  for (int g = 0; g < (F::pairs ? 8 : 16); g++) tile.scale[g][row] = scale[g];
  const uint32_t both = r.d();
  tile.d[0][row] = half(uint16_t(both)) * R::factor;
  if (!F::lows) return;
  tile.m[0][row] = half(uint16_t(both >> 16));
  put_low(sc.low[0], row, tile.low);
  if (!F::pairs) put_low(sc.low[1], row, tile.low + 2);
}

template <class F>
inline void pack_narrow_row(const uint8_t* s, int row, int8_t* q, Tile& tile) {
  using R = Registers<F>;
  for (int j = 0; j < 8; j++) {
    uint8x16_t codes[2];
    if constexpr (F::pairs) R(s + j * F::bytes).codes(codes);
    else R(R::at(s, j)).codes(codes);
    for (int k = 0; k < 2; k++)
      vst1q_s8(q + 32 * j + 16 * k, vreinterpretq_s8_u8(R::bias ? vsubq_u8(codes[k], byte16(R::bias)) : codes[k]));
  }
  for (int odd = 0; odd < 2; odd++) {
    float d[4], m[4];
    if constexpr (F::pairs) vst1q_f32(d, R::d(s + odd * F::bytes));
    if constexpr (F::lows) vst1q_f32(m, R::m(s + odd * F::bytes));
    if constexpr (!F::pairs) {
      vst1q_f32(d, R::d(s, 2 * odd));
      vst1q_f32(m, R::d(s, 2 * odd + 1));
    }
    for (int k = 0; k < 4; k++) {
      tile.d[4 * odd + k][row] = d[k];
      if (F::lows || !F::pairs) tile.m[4 * odd + k][row] = m[k];
    }
  }
}

template <class F>
__attribute__((noinline)) void pack(const uint8_t* strip, size_t row_bytes, int n, int cols, Tile& tile) {
  alignas(64) int8_t q[4][256];
  uint8_t last[256 / F::block * F::bytes];
  for (int from = 0; from < 16; from += 4) {
#pragma GCC unroll 1
    for (int r = 0; r < 4; r++) {
      const uint8_t* s = chunk_of<F>(strip + size_t(from + r) * row_bytes, n, cols, last);
      if constexpr (F::wide) pack_wide_row<F>(s, from + r, q[r], tile);
      else pack_narrow_row<F>(s, from + r, q[r], tile);
    }
    for (int i = 0; i < 256; i += 16) put_rows(q, i, from, tile);
  }
}

// The sums of low * sums of y of four rows: a sum is 64 times a byte and a byte from 0 to 63.
template <bool PAIRS>
inline int32x4_t low_sums(const Tile& tile, int row, int8x16_t high, int8x16_t rest) {
  int8x16_t w[4];
  int32x4_t a = vdupq_n_s32(0), b = a;
  for (int k = 0; k < (PAIRS ? 2 : 4); k++) w[k] = vld1q_s8(tile.low[k] + 4 * row);
  a = vdotq_laneq_s32(vdotq_laneq_s32(a, w[0], high, 0), w[1], high, 1);
  b = vdotq_laneq_s32(vdotq_laneq_s32(b, w[0], rest, 0), w[1], rest, 1);
  if (!PAIRS) {
    a = vdotq_laneq_s32(vdotq_laneq_s32(a, w[2], high, 2), w[3], high, 3);
    b = vdotq_laneq_s32(vdotq_laneq_s32(b, w[2], rest, 2), w[3], rest, 3);
  }
  return vaddq_s32(vshlq_n_s32(a, 6), b);
}

// acc[u][16] of rows from `row`: eight of them.
template <class F, int T>
__attribute__((noinline)) void wide_tile(const Tile& tile, Tokens x, int row, float (*acc)[16]) {
  const Activation* a = x.a;
  int32x4_t total[2][T];
  scaled_sums<F::pairs ? 32 : 16, T>(tile, x, row, total);
  for (int u = 0; u < T; u++) {
    int8x16_t high, rest;
    if (F::lows) {
      const int16x8_t x = vld1q_s16(F::pairs ? a[u].sum32 : a[u].sum16), z = F::pairs ? x : vld1q_s16(a[u].sum16 + 8);
      high = vshrn_high_n_s16(vshrn_n_s16(x, 6), z, 6);
      rest = vandq_s8(vmovn_high_s16(vmovn_s16(x), z), vdupq_n_s8(63));
    }
    for (int h = 0; h < 2; h++) {
      const int at = row + 4 * h;
      float32x4_t value = vmulq_f32(vld1q_f32(tile.d[0] + at), vcvtq_f32_s32(total[h][u]));
      if (F::lows)
        value = vfmsq_f32(value, vld1q_f32(tile.m[0] + at), vcvtq_f32_s32(low_sums<F::pairs>(tile, at, high, rest)));
      vst1q_f32(acc[u] + at, vfmaq_n_f32(vld1q_f32(acc[u] + at), value, a[u].d[0]));
    }
  }
}

// v[j] of the narrow types, where place(j) == at.
template <class F, int T>
inline __attribute__((always_inline)) void block_values(const Tile& tile, Tokens x, int row, int j, int at,
                                                        float32x4_t (*v)[T]) {
  int32x4_t dot[2][T];
  dots_of<F::pairs ? 32 : 16, T>(tile, x, 32 * j, row, dot);
  for (int h = 0; h < 2; h++)
    for (int u = 0; u < T; u++) {
      v[h][u] = vmulq_f32(vld1q_f32(tile.d[at] + row + 4 * h), vcvtq_f32_s32(dot[h][u]));
      if (F::lows) v[h][u] = vfmaq_n_f32(v[h][u], vld1q_f32(tile.m[at] + row + 4 * h), float(x.a[u].sum32[j]));
    }
  if constexpr (!F::pairs) {
    dots_of<16, T>(tile, x, 32 * j + 16, row, dot);
    for (int h = 0; h < 2; h++)
      for (int u = 0; u < T; u++)
        v[h][u] = vfmaq_f32(v[h][u], vld1q_f32(tile.m[at] + row + 4 * h), vcvtq_f32_s32(dot[h][u]));
  }
}

template <class F, int T>
__attribute__((noinline)) void narrow_tile(const Tile& tile, Tokens x, int row, float (*acc)[16]) {
  const Activation* a = x.a;
  float32x4_t sum[2][2][T];
#pragma GCC unroll 1
  for (int i = 0; i < 4; i++) {  // q[0], q[2], q[1], q[3]
    const int at = i / 2 + 2 * (i % 2);
    float32x4_t q[2][T];
    for (int odd = 0; odd < 2; odd++) {
      float32x4_t v[2][T];
      block_values<F, T>(tile, x, row, 2 * at + odd, at + 4 * odd, v);
      for (int h = 0; h < 2; h++)
        for (int u = 0; u < T; u++)
          q[h][u] = odd ? vfmaq_n_f32(q[h][u], v[h][u], a[u].d[at + 4]) : vmulq_n_f32(v[h][u], a[u].d[at]);
    }
    for (int h = 0; h < 2; h++)
      for (int u = 0; u < T; u++) sum[i / 2][h][u] = i % 2 ? vaddq_f32(sum[i / 2][h][u], q[h][u]) : q[h][u];
  }
  for (int h = 0; h < 2; h++)
    for (int u = 0; u < T; u++) {
      float* to = acc[u] + row + 4 * h;
      vst1q_f32(to, vaddq_f32(vld1q_f32(to), vaddq_f32(sum[0][h][u], sum[1][h][u])));
    }
}

template <class F, int T>
inline void tile_tokens(const Tile& tile, Tokens x, float (*acc)[16]) {
  for (int row = 0; row < 16; row += 8)
    if constexpr (F::wide) wide_tile<F, T>(tile, x, row, acc);
    else narrow_tile<F, T>(tile, x, row, acc);
}

constexpr int tokens_at_once = 128;

template <class F>
void quantized_rows(const Job& job) {
  if (job.tokens == 1) return stream<F>(job, 0, job.begin, job.end);
  const int chunks = (job.cols + 255) / 256, strips = job.begin + (job.end - job.begin) / 16 * 16;
  Tile tile;
  alignas(64) float acc[tokens_at_once + 4][16];
  for (int from = 0; from < job.tokens; from += tokens_at_once) {
    const int tokens = job.tokens - from < tokens_at_once ? job.tokens - from : tokens_at_once;
    const Rows x(job, from, tokens);
    for (int r = job.begin; r < strips; r += 16) {
      const uint8_t* strip = job.weights + size_t(r) * job.row_bytes;
      __builtin_memset(acc, 0, sizeof acc[0] * size_t(tokens + 4));
      for (int n = 0; n < chunks; n++) {
        constexpr int size = 256 / F::block * F::bytes;
        Ahead ahead(job, r, strips, size_t(n) * 16 * size, 16 * size, tokens / 4 + 2);
        ahead.ask();
        pack<F>(strip, job.row_bytes, n, job.cols, tile);
        int t = 0;  // the last tokens are computed with what lies behind them
        for (; t + (in_fours ? 0 : 1) < tokens; t += 4) {
          ahead.ask();
          tile_tokens<F, 4>(tile, x.at(job, from + t, t, n), acc + t);
        }
        ahead.ask_for_all();
        if constexpr (!in_fours)
          if (t < tokens) tile_tokens<F, 1>(tile, x.at(job, from + t, t, n), acc + t);
      }
      for (int t = 0; t < tokens; t++) __builtin_memcpy(job.out[from + t] + r, acc[t], sizeof acc[t]);
    }
    for (int t = 0; t < tokens && strips < job.end; t++) stream<F>(job, from + t, strips, job.end);
  }
}

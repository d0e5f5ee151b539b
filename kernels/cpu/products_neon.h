// Products of a tile and tokens by `sdot`: it takes four elements of four rows and, by lane, of one token.

constexpr bool in_fours = false;  // whether tokens are computed four at a time, whatever their number

struct Tokens {  // some, and 256 elements of each
  const Activation* a;
};
struct Rows {  // what is made of the tokens for all rows: nothing
  Rows(const Job&, int, int) {}
  Tokens at(const Job& job, int token, int, int n) const { return {&job.at(token, n)}; }
};

// 16 elements from `from` of four rows [row][256] become part of a tile from row `row`: their words in turn.
inline void put_rows(const int8_t (*rows)[256], int from, int row, Tile& tile) {
  int8_t(*to)[64] = reinterpret_cast<int8_t(*)[64]>(tile.q + 16 * from + 4 * row);
  int32x4_t x[4];
  for (int r = 0; r < 4; r++) x[r] = vreinterpretq_s32_s8(vld1q_s8(rows[r] + from));
  const int64x2_t a = vreinterpretq_s64_s32(vtrn1q_s32(x[0], x[1])), b = vreinterpretq_s64_s32(vtrn2q_s32(x[0], x[1]));
  const int64x2_t c = vreinterpretq_s64_s32(vtrn1q_s32(x[2], x[3])), d = vreinterpretq_s64_s32(vtrn2q_s32(x[2], x[3]));
  vst1q_s8(to[0], vreinterpretq_s8_s64(vzip1q_s64(a, c)));
  vst1q_s8(to[1], vreinterpretq_s8_s64(vzip1q_s64(b, d)));
  vst1q_s8(to[2], vreinterpretq_s8_s64(vzip2q_s64(a, c)));
  vst1q_s8(to[3], vreinterpretq_s8_s64(vzip2q_s64(b, d)));
}

// The sums of COUNT elements from `from` of eight rows from `row` and T tokens.
template <int COUNT, int T>
inline __attribute__((always_inline)) void dots_of(const Tile& tile, Tokens x, int from, int row,
                                                   int32x4_t (*dot)[T]) {
  const int8_t* w = tile.q + 16 * from + 4 * row;
  for (int i = 0; i < COUNT; i += 16, w += 4 * 64)
    for (int h = 0; h < 2; h++) {
      const int8x16_t w0 = vld1q_s8(w + 16 * h), w1 = vld1q_s8(w + 16 * h + 64);
      const int8x16_t w2 = vld1q_s8(w + 16 * h + 128), w3 = vld1q_s8(w + 16 * h + 192);
      for (int u = 0; u < T; u++) {
        const int8x16_t y = vld1q_s8(x.a[u].q + from + i);
        dot[h][u] = vdotq_laneq_s32(i ? dot[h][u] : nothing(w0, y), w0, y, 0);
        dot[h][u] = vdotq_laneq_s32(dot[h][u], w1, y, 1);
        dot[h][u] = vdotq_laneq_s32(dot[h][u], w2, y, 2);
        dot[h][u] = vdotq_laneq_s32(dot[h][u], w3, y, 3);
      }
    }
}

// The sums of scale * code * y of eight rows from `row` and T tokens, SIZE elements a scale.
template <int SIZE, int T>
inline __attribute__((always_inline)) void scaled_sums(const Tile& tile, Tokens x, int row, int32x4_t (*total)[T]) {
  for (int h = 0; h < 2; h++)
    for (int u = 0; u < T; u++) total[h][u] = vdupq_n_s32(0);
#pragma GCC unroll 1
  for (int g = 0; g < 256 / SIZE; g++) {
    int32x4_t dot[2][T];
    dots_of<SIZE, T>(tile, x, SIZE * g, row, dot);
    for (int h = 0; h < 2; h++) {
      const int32x4_t scale = vld1q_s32(tile.scale[g] + row + 4 * h);
      for (int u = 0; u < T; u++) total[h][u] = vmlaq_s32(total[h][u], dot[h][u], scale);
    }
  }
}

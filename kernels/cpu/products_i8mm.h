// Products of a tile and tokens by `smmla`: it takes eight elements of two rows and of two tokens.

constexpr bool in_fours = true;  // whether tokens are computed four at a time, whatever their number

struct Tokens {  // four, and 256 elements of each: activations, and their bytes [elements / 8][pair][token][8]
  const Activation* a;
  const int8_t* y;
};
class Rows {  // the bytes of `tokens` tokens from `from` for all rows, in the memory of `scratch`
 public:
  Rows(const Job& job, int from, int tokens) : chunks_((job.cols + 255) / 256) {
    int8_t* to = reinterpret_cast<int8_t*>(scratch(size_t(tokens + 3) / 4 * chunks_ * 1024));
    y_ = to;
    for (int t = from; t < from + tokens; t += 4)
      for (int n = 0; n < chunks_; n++) {
        const Activation* a = &job.at(t, n);
        for (int i = 0; i < 256; i += 16, to += 64)
          for (int pair = 0; pair < 2; pair++) {
            const int64x2_t x = vreinterpretq_s64_s8(vld1q_s8(a[2 * pair].q + i));
            const int64x2_t z = vreinterpretq_s64_s8(vld1q_s8(a[2 * pair + 1].q + i));
            vst1q_s8(to + 16 * pair, vreinterpretq_s8_s64(vzip1q_s64(x, z)));
            vst1q_s8(to + 16 * pair + 32, vreinterpretq_s8_s64(vzip2q_s64(x, z)));
          }
      }
  }
  Tokens at(const Job& job, int token, int i, int n) const {  // the ith of them
    return {&job.at(token, n), y_ + (size_t(i / 4) * chunks_ + n) * 1024};
  }

 private:
  int chunks_;
  const int8_t* y_;
};

// 16 elements from `from` of four rows [row][256] become part of a tile from row `row`: [elements / 8][row][8].
inline void put_rows(const int8_t (*rows)[256], int from, int row, Tile& tile) {
  int8_t* to = tile.q + 16 * from + 8 * row;
  for (int r = 0; r < 4; r += 2, to += 16) {
    const int64x2_t x = vreinterpretq_s64_s8(vld1q_s8(rows[r] + from));
    const int64x2_t y = vreinterpretq_s64_s8(vld1q_s8(rows[r + 1] + from));
    vst1q_s8(to, vreinterpretq_s8_s64(vzip1q_s64(x, y)));
    vst1q_s8(to + 128, vreinterpretq_s8_s64(vzip2q_s64(x, y)));
  }
}

// The sums of COUNT elements from `from` of eight rows from `row` and four tokens, pairs of either:
// [row pair][token pair].
template <int COUNT>
inline __attribute__((always_inline)) void pairs_of(const Tile& tile, Tokens x, int from, int row,
                                                    int32x4_t (*dot)[2]) {
  const int8_t *w = tile.q + 16 * from + 8 * row, *y = x.y + 4 * from;
  for (int i = 0; i < COUNT; i += 8, w += 128, y += 32) {
    const int8x16_t first = vld1q_s8(y), second = vld1q_s8(y + 16);
    for (int p = 0; p < 4; p++) {
      const int8x16_t q = vld1q_s8(w + 16 * p);
      dot[p][0] = vmmlaq_s32(i ? dot[p][0] : nothing(q, first), q, first);
      dot[p][1] = vmmlaq_s32(i ? dot[p][1] : nothing(q, second), q, second);
    }
  }
}

// Pairs become four rows of one token.
inline void apart(const int32x4_t (*pairs)[2], int32x4_t (*to)[4]) {
  for (int h = 0; h < 2; h++)
    for (int t = 0; t < 2; t++) {
      to[h][2 * t] = vuzp1q_s32(pairs[2 * h][t], pairs[2 * h + 1][t]);
      to[h][2 * t + 1] = vuzp2q_s32(pairs[2 * h][t], pairs[2 * h + 1][t]);
    }
}

template <int COUNT, int T>
inline __attribute__((always_inline)) void dots_of(const Tile& tile, Tokens x, int from, int row, int32x4_t (*dot)[T]) {
  int32x4_t pairs[4][2];
  pairs_of<COUNT>(tile, x, from, row, pairs);
  apart(pairs, dot);
}

// The sums of scale * code * y of eight rows from `row` and four tokens, SIZE elements a scale.
template <int SIZE, int T>
inline __attribute__((always_inline)) void scaled_sums(const Tile& tile, Tokens x, int row, int32x4_t (*total)[T]) {
  int32x4_t sum[4][2];
  for (int p = 0; p < 4; p++) sum[p][0] = sum[p][1] = vdupq_n_s32(0);
#pragma GCC unroll 1
  for (int g = 0; g < 256 / SIZE; g++) {
    int32x4_t dot[4][2];
    pairs_of<SIZE>(tile, x, SIZE * g, row, dot);
    for (int h = 0; h < 2; h++) {
      const int32x4_t scale = vld1q_s32(tile.scale[g] + row + 4 * h);
      const int32x4_t twice[2] = {vzip1q_s32(scale, scale), vzip2q_s32(scale, scale)};
      for (int p = 0; p < 2; p++)
        for (int t = 0; t < 2; t++) sum[2 * h + p][t] = vmlaq_s32(sum[2 * h + p][t], dot[2 * h + p][t], twice[p]);
    }
  }
  apart(sum, total);
}

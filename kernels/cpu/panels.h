// Activations as the products of a call read them: rounded, a block's tokens one behind the other or side by side.
#pragma once
#include <algorithm>
#include <cstring>

#include "block.h"

namespace gmoe {

constexpr int group_rows = 128;  // tokens that are computed together

// The Eights of a group of tokens in all blocks, for formats that want them.
class Eights {
 public:
  Eights(const Level& level, bool wanted, int n) : level_(level), blocks_(wanted ? n / 256 : 0) {}

  size_t bytes(int tokens) const { return size_t(of(tokens)) * size_t(blocks_) * eight_bytes; }
  int pieces(int tokens) const { return tokens < least ? 0 : blocks_ * parts(tokens); }
  // Piece i, from the Activations of each block side by side.
  void put(int i, const char* activations, int tokens, char* to) const {
    const int block = i / parts(tokens), first = i % parts(tokens) * group_rows;
    Job job{};
    fill(job, tokens, to);
    const Activation* a = reinterpret_cast<const Activation*>(activations) + size_t(block) * tokens + first;
    level_.side_by_side(a, std::min(group_rows, tokens - first), const_cast<Eight*>(job.eights_at(first, block)),
                        const_cast<Far*>(job.fars_at(first, block)));
  }
  void fill(Job& job, int tokens, const char* to) const {
    job.tokens = tokens;
    job.eights = blocks_ && tokens >= least ? to : nullptr;
    job.eights_stride = size_t(of(tokens)) * eight_bytes;
  }

 private:
  static constexpr int least = 8;  // tokens for whom they pay
  static int of(int tokens) { return (tokens + 7) / 8; }
  static int parts(int tokens) { return (tokens + group_rows - 1) / group_rows; }

  const Level& level_;
  int blocks_;
};

// Rounded activations in groups of rows, a group the tokens of one product: the Activations of a block side by side,
// and behind each group three that a product may read while others write the next group.
// Where the rows are x [rows][n] and need neither rounding nor padding, they are read where they lie.
class Panels {
 public:
  Panels(const Level& level, Rounding kind, int n, int rows, const float* x = nullptr, int groups = 1,
         bool eights = false)
      : level_(level), kind_(kind), n_(n), rows_(rows), groups_(groups), eights_(level, eights, n),
        blocks_(kind == Rounding::wide || kind == Rounding::narrow),
        row_bytes_(blocks_ ? size_t(n + 255) / 256 * sizeof(Activation) : (size_t(n) * 4 + 63) / 64 * 64),
        given_(x && kind == Rounding::none && n % 16 == 0),
        to_(given_ ? reinterpret_cast<char*>(const_cast<float*>(x)) : nullptr) {}

  size_t bytes() const { return given_ ? 0 : start(groups_, rows_) + eights_.bytes(rows_ + 8 * groups_); }
  size_t bytes(int rows) const { return row_bytes_ * size_t(rows) + behind; }  // of one group
  // Takes its bytes from the front of `memory`.
  void take(char*& memory) {
    if (!given_) to_ = memory;
    memory += bytes();
  }

  // Rounds elements [from, from + n) of row i of the group of `count` rows that begins at row `first`.
  void round(const float* x, int from, int n, int group, int first, int i, int count) const {
    if (given_) return;
    char* to = to_ + start(group, first);
    if (blocks_) {
      size_t stride = sizeof(Activation) * size_t(count);
      level_.round(x, n, kind_, to + size_t(from) / 256 * stride + size_t(i) * sizeof(Activation), stride);
    } else {
      level_.round(x, n, kind_, to + size_t(i) * row_bytes_ + size_t(from) * 4, 0);
    }
  }
  // A piece of the Eights of a group whose rows in that block are rounded: there are `pieces(count)`, block by block.
  int pieces(int count) const { return eights_.pieces(count); }
  void put_side_by_side(int piece, int group, int first, int count) const {
    eights_.put(piece, to_ + start(group, first), count, eights(group, first));
  }
  // These rows of a panel that is one group become a group of their own at `to`, which has `bytes` for them.
  void gather(const int* rows, int count, char* to) const {
    if (!blocks_) {
      for (int i = 0; i < count; i++, to += row_bytes_) std::memcpy(to, to_ + row_bytes_ * size_t(rows[i]), row_bytes_);
      return;
    }
    for (int b = 0; b * 256 < n_; b++)
      for (int i = 0; i < count; i++, to += sizeof(Activation))
        std::memcpy(to, to_ + sizeof(Activation) * (size_t(b) * rows_ + rows[i]), sizeof(Activation));
  }
  void fill(Job& job, int group, int first, int count) const {
    fill(job, given_ ? to_ + row_bytes_ * size_t(first) : to_ + start(group, first), count, count);
    eights_.fill(job, count, eights(group, first));
  }
  // One row of a panel that is one group, or the group of `count` rows that was gathered at `x`.
  void fill_row(Job& job, int row) const {
    fill(job, to_ + (blocks_ ? sizeof(Activation) : row_bytes_) * size_t(row), 1, rows_);
  }
  void fill(Job& job, const char* x, int count, int side_by_side) const {
    job.x = x;
    job.token_stride = blocks_ ? sizeof(Activation) : row_bytes_;
    job.block_stride = sizeof(Activation) * size_t(side_by_side);
    job.tokens = count;
  }

 private:
  static constexpr size_t behind = 3 * sizeof(Activation);
  size_t start(int group, int first) const { return row_bytes_ * size_t(first) + behind * size_t(group); }
  char* eights(int group, int first) const {
    return given_ ? nullptr : to_ + start(groups_, rows_) + eights_.bytes(first / 8 * 8 + 8 * group);
  }

  const Level& level_;
  Rounding kind_;
  int n_, rows_, groups_;
  Eights eights_;
  bool blocks_;
  size_t row_bytes_;
  bool given_;
  char* to_;
};

}  // namespace gmoe

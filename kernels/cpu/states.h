// Recurrent layers: short convolutions and gated delta rules, over slots that hold what the past is to a layer.
#pragma once
#include <cstddef>
#include <cstdint>

namespace gmoe {

struct Step;
constexpr int most_taps = 15;  // inputs before a token's own that a convolution sees

// Whose rows are whose, from which slots the sequences come and into which they go, as `Paths` in state.py says.
struct Paths {
  const int32_t *starts;  // [S + 1]
  const int32_t *source, *target, *kept, *kept_after;  // [S]
  int sequences;

  int rows(int s) const { return starts[s + 1] - starts[s]; }
};

// Throws std::invalid_argument, one sentence, where paths leave the rows or the slots, or meet.
void check(const Paths&, int rows, int slots);

// A slot [taps][channels] holds the last inputs, the oldest first.
struct Convolution {
  int channels, taps;
  bool silu;
  const float *weight, *bias;  // [taps + 1][channels], and [channels] or null
  const float *x, *before, *after;  // rows [channels]; the last two or null
  size_t x_row, before_row, after_row;  // floats from a row to the next
  float *y, *slots;
};

struct DeltaRule {
  int n_key, n_value, dv;
  bool neighbours;  // which heads of values share one of keys
  const float *a, *dt_bias;  // [n_value]
  const float* norm;  // [dv]
  float eps;
};

// A slot [n_value][dk][dv] holds a matrix a head.
struct Delta {
  DeltaRule rule;
  int dk, tokens;
  const float *qkv, *alpha, *beta, *z;
  size_t qkv_row, alpha_row, beta_row, z_row;
  float *y, *slots;
  float* ready;  // [n_key][tokens][2][dk], queries and keys with their lengths, then `forget`

  size_t ready_floats() const { return size_t(tokens) * (2 * size_t(rule.n_key) * dk + 2 * size_t(rule.n_value)); }
  int key_head(int head) const { return rule.neighbours ? head / (rule.n_value / rule.n_key) : head % rule.n_key; }
  float* query(int key_head, int token) const { return ready + (size_t(key_head) * tokens + token) * 2 * dk; }
  float* forget(int head, int token) const {  // what is left of the old, and how much of the new is learnt
    return ready + size_t(rule.n_key) * tokens * 2 * dk + (size_t(head) * tokens + token) * 2;
  }
  size_t matrix() const { return size_t(dk) * rule.dv; }
  float* slot(int n, int head) const { return slots + (size_t(n) * rule.n_value + head) * matrix(); }
  const float* value(int head, int token) const {
    return qkv + token * qkv_row + 2 * size_t(rule.n_key) * dk + size_t(head) * rule.dv;
  }
  float* out(int head, int token) const { return y + (size_t(token) * rule.n_value + head) * rule.dv; }
};

constexpr int delta_band = 32;  // columns of a matrix that a task takes through a sequence's tokens

void convolve(const Step&, const Convolution&, const Paths&, int threads);
void delta(const Step&, Delta, const Paths&, int threads);

}  // namespace gmoe

// Recurrent layers: short convolutions, gated delta rules, Kimi's delta attention and state spaces, by head or by
// channel, over slots that hold what the past is to a layer.
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

// A slot [taps] of rows [channels], perhaps parts of wider ones, holds the last inputs, the oldest first.
struct Convolution {
  int channels, taps;
  bool silu;
  const float *weight, *bias;  // [taps + 1][channels], and [channels] or null
  const float *x, *before, *after;  // rows [channels]; the last two or null
  size_t x_row, before_row, after_row, slot_row;  // floats from a row to the next
  float *y, *slots;
};

// Of all rules below: a matrix a head, slots [heads][dk][dv], and what tokens give [tokens][heads][dv].
struct Recurrence {
  int heads, dk, dv, tokens;
  float *y, *slots;
  float* ready;  // `forget`, then what else a rule prepares

  size_t matrix() const { return size_t(dk) * dv; }
  float* slot(int n, int head) const { return slots + (size_t(n) * heads + head) * matrix(); }
  float* out(int head, int token) const { return y + (size_t(token) * heads + head) * dv; }
  float* forget(int head, int token) const {  // what is left of the old, and how much of the new is learnt
    return ready + (size_t(head) * tokens + token) * 2;
  }
  size_t forget_floats() const { return 2 * size_t(heads) * tokens; }
};

struct DeltaRule {
  int n_key;
  bool neighbours;  // which heads of values share one of keys
  const float *a, *dt_bias;  // [heads]
  const float* norm;  // [dv]
  float eps;
  bool sigmoid;  // the gate is the sigmoid of z, not its SiLU
};

struct Delta : Recurrence {
  static constexpr bool asks = true;  // what the matrix has for a key, before it is learnt
  DeltaRule rule;
  const float *qkv, *alpha, *beta, *z;
  size_t qkv_row, alpha_row, beta_row, z_row;

  // Queries and keys with their lengths, behind `forget` [n_key][tokens][2][dk].
  size_t ready_floats() const { return forget_floats() + size_t(tokens) * 2 * rule.n_key * dk; }
  float* query_of(int key_head, int token) const {
    return ready + forget_floats() + (size_t(key_head) * tokens + token) * 2 * dk;
  }
  const float* query(int head, int token) const {
    return query_of(rule.neighbours ? head / (heads / rule.n_key) : head % rule.n_key, token);
  }
  const float* key(int head, int token) const { return query(head, token) + dk; }
  const float* asked(int head, int token) const { return key(head, token); }
  const float* value(int head, int token) const {
    return qkv + token * qkv_row + 2 * size_t(rule.n_key) * dk + size_t(head) * dv;
  }
};

struct KimiRule {
  const float *a, *dt_bias;  // [heads], and [heads * dk]
  const float* norm;  // [dv]
  float eps, key_eps;
  float floor;  // where it is below 0, of a row more than exp(floor) is left
};

// A delta rule whose heads forget each row of their matrices as fast as a token says, with queries and keys of their
// own.
struct Kimi : Recurrence {
  static constexpr bool asks = true;
  KimiRule rule;
  const float *q, *k, *v, *fade, *beta, *gate;
  size_t q_row, k_row, v_row, fade_row, beta_row, gate_row;

  // The query and the key with their lengths, what is left of the old, and the key times that, behind `forget`
  // [heads][tokens][4][dk].
  size_t ready_floats() const { return forget_floats() + 4 * size_t(heads) * tokens * dk; }
  float* query(int head, int token) const {
    return ready + forget_floats() + (size_t(head) * tokens + token) * 4 * dk;
  }
  float* key(int head, int token) const { return query(head, token) + dk; }
  float* left(int head, int token) const { return query(head, token) + 2 * dk; }
  float* asked(int head, int token) const { return query(head, token) + 3 * dk; }
  const float* value(int head, int token) const { return v + token * v_row + size_t(head) * dv; }
};

struct SpaceRule {
  int n_group;  // heads h share B and C of h / (heads / n_group)
  const float *a, *dt_bias, *d;  // [heads]
  const float* norm;  // [heads * dv]
  float eps;
};

// A rule whose keys are B, queries C, and values x.
struct Space : Recurrence {
  static constexpr bool asks = false;
  SpaceRule rule;
  const float *xbc, *dt, *z;
  size_t xbc_row, dt_row, z_row;

  size_t ready_floats() const { return forget_floats(); }
  const float* value(int head, int token) const { return xbc + token * xbc_row + size_t(head) * dv; }
  const float* key(int head, int token) const {
    return value(heads, token) + size_t(head / (heads / rule.n_group)) * dk;
  }
  const float* query(int head, int token) const { return key(head, token) + size_t(rule.n_group) * dk; }
};

// A state space each channel, with a step of its own (Mamba-1): all have B and C of a token, and what channels have
// lies in blocks of sixteen of them, [dk][16], the last filled up.
struct Channels {
  int channels, dk;
  const float *a, *d;  // [blocks][dk][16], and [channels]
  const float *x, *dt, *b, *c, *z;
  size_t x_row, dt_row, b_row, c_row, z_row;
  float *y, *slots;  // [tokens][channels], and [slot][blocks][dk][16]

  size_t block() const { return size_t(dk) * 16; }
  float* slot(int n, int channel) const {  // from the block that begins with a channel on
    return slots + size_t(n) * size_t((channels + 15) / 16) * block() + size_t(channel) * dk;
  }
};

constexpr int matrix_band = 32;  // columns of a matrix that a task takes through a sequence's tokens

void convolve(const Step&, const Convolution&, const Paths&, int threads);
void learn(const Step&, Delta, const Paths&, int threads);
void learn(const Step&, Kimi, const Paths&, int threads);
void learn(const Step&, Space, const Paths&, int threads);
void learn(const Step&, const Channels&, const Paths&, int threads);

}  // namespace gmoe

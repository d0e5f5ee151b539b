// What a step does beside products with weights: norms, rotations, routing, the cache and attention over it.
#pragma once
#include <cstddef>
#include <cstdint>

#include "states.h"

namespace gmoe {

constexpr int cache_block = 32;     // tokens of a block of the cache
constexpr int most_experts = 1024;  // that a router chooses from
constexpr int most_streams = 16;    // of a residual
constexpr int key_chunk = 512;      // keys whose partial result is found alone: the same whoever computes it
enum class Number { f32, f16, bf16, q8_0 };
enum class Sight { causal, sliding, chunked };
enum class Gating { softmax, sigmoid, softmax_weight, sqrt_softplus };

// One layer's cache. Keys [block][head][dk][32], values [block][head][32][dv]; q8_0 has a float16 scale for 32
// elements of a token's head: key scales [block][head][ceil(dk / 32)][32], value scales
// [block][head][32][ceil(dv / 32)].
struct Cache {
  Number number;
  int heads, dk, dv;
  char *keys, *values;
  uint16_t *key_scales, *value_scales;
};

struct Attention {
  Cache cache;
  const float* q;  // [T][n_head][dk]
  float* out;      // [T][n_head][dv], perhaps where q is
  size_t out_row;  // floats from a head's result to the next
  int n_head;
  float scale;
  const float* sinks;  // [n_head] or null
  Sight sight;
  int64_t size;  // of the window or the chunk
  const int64_t* positions;  // [T]
  float cap = 0.0f;          // what scores softly stay under; 0: anything
  int split = 1;             // parts of the queries of one head of the cache: "heads" below are such parts

  int heads() const { return cache.heads * split; }
  int group() const { return n_head / heads(); }
  size_t scratch(int count) const {  // floats that `chunk` needs
    size_t queries = size_t(count) * group();
    return size_t(cache.dk) * cache_block + size_t(cache_block) * width() + queries * (cache.dk + cache_block + 2) + 64;
  }
  int width() const { return (cache.dv + 15) / 16 * 16; }
  int64_t first_key(int token) const {
    int64_t p = positions[token];
    if (sight == Sight::sliding) return p - size + 1 > 0 ? p - size + 1 : 0;
    return sight == Sight::chunked ? p / size * size : 0;
  }
};

// Softmax-weighted values of some keys for `queries` = tokens x group rows: out = o / l, relative to e^m.
struct Partial {
  float* m;  // [queries], -inf: has seen no key
  float* l;  // [queries]
  float* o;  // [queries][width]
};

struct Router {
  int experts, chosen, groups, groups_used;
  Gating gating;
  const float* bias;  // [experts] or null
  bool renormalize;
  float scale;
  const float* each;  // [experts] or null
  int chunk;  // so many experts, one after another, are one: that of the chunk's number
};

// Queries or keys [T][heads][d]: norms over `width` elements each (0: none), then the rotation.
struct Heads {
  float* x;
  int heads, d, width;
  const float *weight, *bias;  // [width] or null
  float eps;
};

struct Step {
  const char* name;
  bool (*here)();
  void (*norm)(const float* x, int n, const float* weight, const float* bias, float eps, float* y);
  void (*centre)(const float* x, int n, float* y);
  void (*residual)(const float* x, float scale, int n, float* y);
  void (*rotate)(float* x, int heads, int d, int n_rot, bool halves, const float* cos, const float* sin);
  void (*gate)(int kind, float most, float most_up, const float* gate, const float* up, int n, float* y);
  void (*weave)(const float* mixes, int n, int rounds, float eps, float* read, float* write);
  void (*blend)(const float* x, int n, const float* y, const float* weights, int m, int d, float* out);
  void (*choose)(const Router&, const float* logits, int32_t* ids, float* weights);
  void (*store)(const Cache&, int64_t slot, const float* key, const float* value);
  // Keys of chunk `chunk` of one sequence for tokens [first, first + count) and one of `heads`.
  void (*chunk)(const Attention&, const int32_t* blocks, int head, int first, int count, int64_t chunk, Partial to,
                float* scratch);
  void (*merge)(Partial to, Partial next, int queries, int width);
  void (*finish)(const Attention&, int head, int first, int count, Partial from);
  void (*convolve)(const Convolution&, const Paths&, int sequence, int first, int count);  // channels
  void (*delta_ready)(const Delta&, int token);  // queries, keys and what is left of the old
  // The token of a sequence that has one, through whole matrices; `next` is asked for meanwhile, or null.
  void (*delta_one)(const Delta&, const Paths&, int sequence, int head, const float* next, float* scratch);
  // All tokens of a sequence, through `matrix_band` columns or as many as there are.
  void (*delta_many)(const Delta&, const Paths&, int sequence, int head, int first, float* scratch);
  void (*delta_out)(const Delta&, int token);  // the norm and the gate behind `delta_many`
  void (*kimi_ready)(const Kimi&, int head, int token);  // the same of Kimi's delta attention
  void (*kimi_one)(const Kimi&, const Paths&, int sequence, int head, const float* next, float* scratch);
  void (*kimi_many)(const Kimi&, const Paths&, int sequence, int head, int first, float* scratch);
  void (*kimi_out)(const Kimi&, int token);
  void (*space_ready)(const Space&, int token);  // and of state spaces
  void (*space_one)(const Space&, const Paths&, int sequence, int head, const float* next, float* scratch);
  void (*space_many)(const Space&, const Paths&, int sequence, int head, int first, float* scratch);
  void (*space_out)(const Space&, int token);  // behind both, since a norm is over several heads
  void (*learn_channels)(const Channels&, const Paths&, int sequence, int first, int count);
};

extern const Step step_portable, step_avx2, step_avx512, step_neon;

void norm(const Step&, const float* x, int rows, int n, const float* weight, const float* bias, float eps, float* y,
          int threads);
// x less the mean of its row.
void centre(const Step&, const float* x, int rows, int n, float* y, int threads);
// y becomes x + scale * y.
void residual(const Step&, const float* x, float scale, int rows, int n, float* y, int threads);
// Copies x [tokens][heads][n]; on both sides tokens and heads are so many floats apart.
void lay(const float* x, size_t x_token, size_t x_head, float* y, size_t y_token, size_t y_head, int tokens, int heads,
         int n, int threads);
void rotate(const Step&, const float* x, float* y, int tokens, int heads, int d, int n_rot, bool halves,
            const float* cos, const float* sin, const int64_t* positions, int threads);
// Both in place; without a table nothing is rotated.
void prepare(const Step&, const Heads& q, const Heads& k, int tokens, int n_rot, bool halves, const float* cos,
             const float* sin, const int64_t* positions, int threads);
// The gates of a row are `apart` behind those of the one before; `most` and `most_up` are a `Gate`'s.
void gate(const Step&, int kind, float most, float most_up, const float* gate, size_t apart, const float* up, int rows,
          int n, float* y, int threads);
// The weights of `n` streams of each token, and `m` sums of its streams by weights, behind y if it is not null.
void weave(const Step&, const float* mixes, int tokens, int n, int rounds, float eps, float* read, float* write,
           int threads);
void blend(const Step&, const float* x, int tokens, int n, const float* y, const float* weights, int m, int d,
           float* out, int threads);
// weight[t] becomes what queries at positions[t] are multiplied with: more at every `step`, by the logarithm.
void warm(const int64_t* positions, int tokens, int64_t behind, int64_t step, float growth, float* weight);
void choose(const Step&, const Router&, const float* logits, int tokens, int32_t* ids, float* weights, int threads);
void store(const Step&, const Cache&, const int64_t* slots, int tokens, const float* keys, const float* values,
           int threads);
void attend(const Step&, const Attention&, const int32_t* tables, int table_width, const int32_t* starts, int sequences,
            int threads);

// The place of the largest, the first of equals; -1 where one is not a number.
int64_t argmax(const float* x, int64_t n);
// Places of the k largest, largest first, equals by place.
void largest_places(const float* x, int64_t n, int64_t k, int64_t* places);

}  // namespace gmoe

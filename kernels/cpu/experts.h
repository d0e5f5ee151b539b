// Products of many rows on all threads: a dense matrix, and the chosen experts of a layer.
#pragma once
#include <cstddef>
#include <cstdint>

#include "block.h"

namespace gmoe {

struct Matrices {  // the same matrix of each expert
  const Format* format;
  int rows, cols;
  size_t row_bytes;
  const int64_t* address;
  const float* bias;  // [experts][rows] or null
  const float* scale;  // [experts] or null: what a product is multiplied with before its bias
};

// A matrix [rows][cols] to multiply with, and where the result goes.
struct Product {
  const Format* format;
  const uint8_t* weights;
  size_t row_bytes;
  int rows;
  const float* bias;  // [rows] or null
  float* out;         // [tokens][rows]
  float scale = 1.0f;  // what the product is multiplied with before its bias
};

// x [tokens][cols] times each matrix, all of them as one queue of tasks.
void matmul(const Level&, const Product* products, int count, int cols, const float* x, int tokens, int threads);

// Numbers of [tokens][heads], each of which begins so many floats after the one before.
template <class T>
struct ByHead {
  T* p;
  size_t token, head;
  T* at(int t, int h) const { return p + size_t(t) * token + size_t(h) * head; }
};

// Each head's x times its own matrix [rows][cols], all of one format and shape; only their weights are used.
void matmul_by_head(const Level&, const Product* heads, int count, int cols, ByHead<const float> x, int tokens,
                    ByHead<float> out, int threads);

// out [tokens][k][down.rows]; ids [tokens][k], -1 leaves its row alone; `gate` may be null (relu2).
void expert_rows(const Level&, const Matrices* gate, const Matrices& up, const Matrices& down, Gate, const float* x,
                 const int32_t* ids, int tokens, int k, float* out, int threads);

// The weighted sum over k of what `expert_rows` gives -> y [tokens][down.rows]: bit for bit its `combine`.
void expert_mlp(const Level&, const Matrices* gate, const Matrices& up, const Matrices& down, Gate, const float* x,
                const int32_t* ids, const float* weights, int tokens, int k, float* y, int threads);

// The weighted sum over k of rows with ids >= 0, in the order of the ids -> y [tokens][width].
void combine(const Level&, const float* rows, const float* weights, const int32_t* ids, int tokens, int k, int width,
             float* y, int threads);

}  // namespace gmoe

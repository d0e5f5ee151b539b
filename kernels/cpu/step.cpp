// The step's kernels on all threads: who does what never changes a result.
#include "step.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "over_rows.h"
#include "pool.h"

namespace gmoe {
namespace {

constexpr int queries_a_tile = 64, queries_at_once = 8;

struct Tile {
  const int32_t* blocks;
  int head, first, count;
  int64_t from, until;  // chunks
};

class Partials {  // of one tile, memory for `chunks` of them
 public:
  Partials(float* memory, int queries, int width) : memory_(memory), queries_(queries), width_(width) {}
  static size_t floats(int queries, int width) { return size_t(queries) * (width + 2); }
  Partial at(int64_t n) const {
    float* p = memory_ + size_t(n) * floats(queries_, width_);
    return {p, p + queries_, p + 2 * queries_};
  }

 private:
  float* memory_;
  int queries_, width_;
};

float* scratch(size_t floats) {
  static thread_local std::vector<float> memory;
  if (memory.size() < floats) memory.resize(floats);
  return memory.data();
}

std::vector<Tile> tiles_of(const Attention& a, const int32_t* tables, int table_width, const int32_t* starts,
                           int sequences) {
  std::vector<Tile> tiles;
  const int tokens = std::max(1, queries_a_tile / a.group());
  for (int s = 0; s < sequences; s++)
    for (int first = starts[s]; first < starts[s + 1]; first += tokens) {
      int count = std::min(tokens, starts[s + 1] - first);
      int64_t low = a.first_key(first), last = a.positions[first + count - 1];
      for (int i = 1; i < count; i++) low = std::min(low, a.first_key(first + i));
      for (int h = 0; h < a.heads(); h++)
        tiles.push_back({tables + size_t(s) * table_width, h, first, count, low / key_chunk, last / key_chunk + 1});
    }
  std::reverse(tiles.begin(), tiles.end());  // the longest first
  return tiles;
}

int64_t chunks_of(const std::vector<Tile>& tiles) {
  int64_t all = 0;
  for (const Tile& t : tiles) all += t.until - t.from;
  return all;
}

}  // namespace

void norm(const Step& step, const float* x, int rows, int n, const float* weight, const float* bias, float eps,
          float* y, int threads) {
  over_rows(rows, n, threads, [&](int from, int until) {
    for (int r = from; r < until; r++) step.norm(x + size_t(r) * n, n, weight, bias, eps, y + size_t(r) * n);
  });
}

void centre(const Step& step, const float* x, int rows, int n, float* y, int threads) {
  over_rows(rows, n, threads, [&](int from, int until) {
    for (int r = from; r < until; r++) step.centre(x + size_t(r) * n, n, y + size_t(r) * n);
  });
}

void residual(const Step& step, const float* x, float scale, int rows, int n, float* y, int threads) {
  over_rows(rows, n, threads, [&](int from, int until) {
    for (int r = from; r < until; r++) step.residual(x + size_t(r) * n, scale, n, y + size_t(r) * n);
  });
}

void lay(const float* x, size_t x_token, size_t x_head, float* y, size_t y_token, size_t y_head, int tokens, int heads,
         int n, int threads) {
  over_rows(tokens, size_t(heads) * n, threads, [&](int from, int until) {
    for (int t = from; t < until; t++)
      for (int h = 0; h < heads; h++)
        std::memcpy(y + t * y_token + h * y_head, x + t * x_token + h * x_head, n * sizeof(float));
  });
}

void rotate(const Step& step, const float* x, float* y, int tokens, int heads, int d, int n_rot, bool halves,
            const float* cos, const float* sin, const int64_t* positions, int threads) {
  over_rows(tokens, size_t(heads) * d, threads, [&](int from, int until) {
    for (int t = from; t < until; t++) {
      const size_t at = size_t(positions[t]) * (n_rot / 2), row = size_t(heads) * d;
      std::memcpy(y + t * row, x + t * row, row * sizeof(float));
      step.rotate(y + t * row, heads, d, n_rot, halves, cos + at, sin + at);
    }
  });
}

void prepare(const Step& step, const Heads& q, const Heads& k, int tokens, int n_rot, bool halves, const float* cos,
             const float* sin, const int64_t* positions, int threads) {
  over_rows(tokens, size_t(q.heads + k.heads) * q.d, threads, [&](int from, int until) {
    for (int t = from; t < until; t++)
      for (const Heads* h : {&q, &k}) {
        const int size = h->heads * h->d;
        float* x = h->x + size_t(t) * size;
        for (int i = 0; h->width && i < size; i += h->width)
          step.norm(x + i, h->width, h->weight, h->bias, h->eps, x + i);
        const size_t at = size_t(positions[t]) * (n_rot / 2);
        if (cos) step.rotate(x, h->heads, h->d, n_rot, halves, cos + at, sin + at);
      }
  });
}

void gate(const Step& step, int kind, float most, float most_up, const float* gate, size_t apart, const float* up,
          int rows, int n, float* y, int threads) {
  over_rows(rows, n, threads, [&](int from, int until) {
    for (int r = from; r < until; r++) {
      size_t at = size_t(r) * n;
      step.gate(kind, most, most_up, gate ? gate + r * apart : nullptr, up + at, n, y + at);
    }
  });
}

void weave(const Step& step, const float* mixes, int tokens, int n, int rounds, float eps, float* read, float* write,
           int threads) {
  const size_t given = size_t(2 + n) * n, made = size_t(n) * (n + 1);
  over_rows(tokens, int(given) * (1 + rounds), threads, [&](int from, int until) {
    for (int t = from; t < until; t++)
      step.weave(mixes + t * given, n, rounds, eps, read + size_t(t) * n, write + t * made);
  });
}

void blend(const Step& step, const float* x, int tokens, int n, const float* y, const float* weights, int m, int d,
           float* out, int threads) {
  const size_t each = size_t(m) * (n + (y ? 1 : 0));
  over_rows(tokens, n * d, threads, [&](int from, int until) {
    for (size_t t = from; t < size_t(until); t++)
      step.blend(x + t * n * d, n, y ? y + t * d : nullptr, weights + t * each, m, d, out + t * m * d);
  });
}

void warm(const int64_t* positions, int tokens, int64_t behind, int64_t step, float growth, float* weight) {
  for (int t = 0; t < tokens; t++)
    weight[t] = std::log(float((positions[t] + behind) / step + 1)) * growth + 1.0f;
}

void choose(const Step& step, const Router& router, const float* logits, int tokens, int32_t* ids, float* weights,
            int threads) {
  over_rows(tokens, 16 * size_t(router.experts), threads, [&](int from, int until) {
    for (int t = from; t < until; t++)
      step.choose(router, logits + size_t(t) * router.experts, ids + size_t(t) * router.chosen,
                  weights + size_t(t) * router.chosen);
  });
}

void store(const Step& step, const Cache& cache, const int64_t* slots, int tokens, const float* keys,
           const float* values, int threads) {
  const size_t k = size_t(cache.heads) * cache.dk, v = size_t(cache.heads) * cache.dv;
  over_rows(tokens, k + v, threads, [&](int from, int until) {
    for (int t = from; t < until; t++) step.store(cache, slots[t], keys + t * k, values + t * v);
  });
}

void attend(const Step& step, const Attention& whole, const int32_t* tables, int table_width, const int32_t* starts,
            int sequences, int threads) {
  if (threads <= 0) threads = usable_cores();
  Attention a = whole;
  std::vector<Tile> tiles = tiles_of(a, tables, table_width, starts, sequences);
  // fewer heads than threads, as of latent attention, which has one
  while (a.group() % (2 * queries_at_once) == 0 && int(tiles.size()) < threads && chunks_of(tiles) < 4 * threads) {
    a.split *= 2;
    tiles = tiles_of(a, tables, table_width, starts, sequences);
  }
  const int width = a.width();
  auto size = [&](const Tile& t) { return Partials::floats(t.count * a.group(), width); };
  if (int(tiles.size()) >= 4 * threads || threads == 1) {  // a tile each, its chunks one after the other
    parallel(int(tiles.size()), threads, [&](int i) {
      const Tile& t = tiles[i];
      const int queries = t.count * a.group();
      float* memory = scratch(2 * size(t) + a.scratch(t.count));
      Partials parts(memory, queries, width);
      Partial total = parts.at(0), next = parts.at(1);
      step.chunk(a, t.blocks, t.head, t.first, t.count, t.from, total, memory + 2 * size(t));
      for (int64_t c = t.from + 1; c < t.until; c++) {
        step.chunk(a, t.blocks, t.head, t.first, t.count, c, next, memory + 2 * size(t));
        step.merge(total, next, queries, width);
      }
      step.finish(a, t.head, t.first, t.count, total);
    });
    return;
  }
  struct Part {
    const Tile* tile;
    int64_t chunk;
    size_t at;  // floats from the start of the memory
  };
  std::vector<Part> parts;
  std::vector<size_t> begins;
  size_t floats = 0;
  for (const Tile& t : tiles) {
    begins.push_back(parts.size());
    for (int64_t c = t.from; c < t.until; c++, floats += size(t)) parts.push_back({&t, c, floats});
  }
  static thread_local std::vector<float> memory;
  if (memory.size() < floats) memory.resize(floats);
  float* const start = memory.data();
  parallel(int(parts.size()), threads, [&](int i) {
    const Tile& t = *parts[i].tile;
    step.chunk(a, t.blocks, t.head, t.first, t.count, parts[i].chunk,
               Partials(start + parts[i].at, t.count * a.group(), width).at(0), scratch(a.scratch(t.count)));
  });
  for (size_t n = 0; n < tiles.size(); n++) {
    const Tile& t = tiles[n];
    Partials all(start + parts[begins[n]].at, t.count * a.group(), width);
    for (int64_t c = 1; c < t.until - t.from; c++) step.merge(all.at(0), all.at(c), t.count * a.group(), width);
    step.finish(a, t.head, t.first, t.count, all.at(0));
  }
}

int64_t argmax(const float* x, int64_t n) {
  constexpr int64_t strip = 1024;
  float most = -INFINITY;
  int64_t place = 0;
  for (int64_t from = 0; from < n; from += strip) {
    const int64_t until = std::min(n, from + strip);
    float top[16];
    uint32_t odd = 0;
    std::fill_n(top, 16, -INFINITY);
    int64_t i = from;
    for (; i + 16 <= until; i += 16)
      for (int k = 0; k < 16; k++) top[k] = x[i + k] > top[k] ? x[i + k] : top[k];
    for (; i < until; i++) top[0] = x[i] > top[0] ? x[i] : top[0];
    for (i = from; i < until; i++) {
      uint32_t bits;
      std::memcpy(&bits, x + i, 4);
      odd |= (bits & 0x7fffffff) > 0x7f800000;
    }
    if (odd) return -1;
    const float here = *std::max_element(top, top + 16);
    if (here > most) {
      most = here;
      place = from;
    }
  }
  while (place < n - 1 && x[place] != most) place++;
  return place;
}

void largest_places(const float* x, int64_t n, int64_t k, int64_t* places) {
  auto before = [&](int64_t a, int64_t b) { return x[a] > x[b] || (x[a] == x[b] && a < b); };
  std::vector<int64_t> heap;  // its front is the least of those held
  for (int64_t i = 0; i < n; i++) {
    if (int64_t(heap.size()) < k) {
      heap.push_back(i);
      std::push_heap(heap.begin(), heap.end(), before);
    } else if (x[i] > x[heap.front()]) {
      std::pop_heap(heap.begin(), heap.end(), before);
      heap.back() = i;
      std::push_heap(heap.begin(), heap.end(), before);
    }
  }
  std::sort_heap(heap.begin(), heap.end(), before);
  std::copy(heap.begin(), heap.end(), places);
}

}  // namespace gmoe

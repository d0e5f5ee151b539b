#include "experts.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "memory.h"
#include "pool.h"

namespace gmoe {
namespace {

constexpr size_t task_bytes = 256 << 10;  // smaller tasks read memory more slowly

// Rounded activations in groups of rows, a group the tokens of one product: the Activations of a block side by side.
class Panels {
 public:
  Panels(Memory& memory, const Level& level, Rounding kind, int n, int rows)
      : level_(level), kind_(kind), n_(n), blocks_(kind == Rounding::wide || kind == Rounding::narrow),
        row_bytes_(blocks_ ? size_t(n + 255) / 256 * sizeof(Activation) : (size_t(n) * 4 + 63) / 64 * 64),
        to_(memory.of(row_bytes_ * size_t(rows))) {}

  // Rounds elements [from, from + n) of row i of the group of `count` rows that begins at row `first`.
  void round(const float* x, int from, int n, int first, int i, int count) const {
    char* group = to_ + row_bytes_ * size_t(first);
    if (blocks_) {
      size_t stride = sizeof(Activation) * size_t(count);
      level_.round(x, n, kind_, group + size_t(from) / 256 * stride + size_t(i) * sizeof(Activation), stride);
    } else {
      level_.round(x, n, kind_, group + size_t(i) * row_bytes_ + size_t(from) * 4, 0);
    }
  }
  void fill(Job& job, int first, int count) const {
    job.x = to_ + row_bytes_ * size_t(first);
    job.token_stride = blocks_ ? sizeof(Activation) : row_bytes_;
    job.block_stride = sizeof(Activation) * size_t(count);
    job.tokens = count;
  }
  int width() const { return n_; }

 private:
  const Level& level_;
  Rounding kind_;
  int n_;
  bool blocks_;
  size_t row_bytes_;
  char* to_;
};

struct Group {  // an expert and its tokens
  int expert, first, count;  // rows [first, first + count) of the places sorted by expert
};

// The places of the flattened ids [tokens][k] sorted by expert, absent ones left out; experts with most tokens first.
std::vector<Group> by_expert(const int32_t* ids, int count, std::vector<int>& places) {
  places.clear();
  for (int i = 0; i < count; i++)
    if (ids[i] >= 0) places.push_back(i);
  std::stable_sort(places.begin(), places.end(), [&](int a, int b) { return ids[a] < ids[b]; });
  std::vector<Group> groups;
  for (int i = 0; i < int(places.size()); i++) {
    if (groups.empty() || groups.back().expert != ids[places[i]]) groups.push_back({ids[places[i]], i, 0});
    groups.back().count++;
  }
  std::stable_sort(groups.begin(), groups.end(), [](const Group& a, const Group& b) { return a.count > b.count; });
  return groups;
}

// Rows a task takes: enough bytes to read well, few enough that every thread has several; whole tiles of 16.
int rows_a_task(int rows, size_t row_bytes, int tokens, int products, int threads) {
  size_t by_bytes = task_bytes / std::max<size_t>(1, row_bytes * size_t(std::min(tokens, 16)));
  size_t by_share = size_t(rows) * size_t(products) / size_t(threads * 4);
  size_t most = std::max<size_t>(tokens > 1 ? 16 : 32, std::min(std::max<size_t>(by_bytes, 64), by_share));
  return int((most + 15) / 16 * 16);
}

// Rows of gate and up a task takes: a power of two that divides 256 or is a multiple of it.
int middle_rows_a_task(int rows, int experts, int tokens, int threads) {
  int step = tokens > 1 ? 64 : 256;
  while (step > 32 && (rows + step - 1) / step * experts < 4 * threads) step /= 2;
  return step;
}

void add_bias(const Matrices& m, int expert, int begin, int end, float* const* out, int count) {
  if (!m.bias) return;
  const float* bias = m.bias + size_t(expert) * m.rows;
  for (int t = 0; t < count; t++)
    for (int r = begin; r < end; r++) out[t][r] += bias[r];
}

void multiply(const Matrices& m, const Panels& x, int first, const Group& group, int begin, int end,
              float* const* out) {
  const uint8_t* weights = reinterpret_cast<const uint8_t*>(static_cast<intptr_t>(m.address[group.expert]));
  Job job{weights, m.row_bytes, m.cols, begin, end, nullptr, 0, 0, 0, out, weights + m.row_bytes * size_t(m.rows)};
  x.fill(job, first, group.count);
  m.format->rows(job);
  add_bias(m, group.expert, begin, end, out, group.count);
}

}  // namespace

void matmul(const Level& level, const Format& format, const uint8_t* weights, size_t row_bytes, int rows, int cols,
            const float* x, int tokens, float* out, int threads) {
  if (threads <= 0) threads = usable_cores();
  thread_local Memory memory;
  Panels panels(memory, level, format.rounding, cols, tokens);
  auto round = [&](int t) { panels.round(x + size_t(t) * cols, 0, cols, 0, t, tokens); };
  if (tokens < 8)
    for (int t = 0; t < tokens; t++) round(t);
  else parallel(tokens, threads, round);
  std::vector<float*> to(tokens);
  for (int t = 0; t < tokens; t++) to[t] = out + size_t(t) * rows;
  int step = rows_a_task(rows, row_bytes, tokens, 1, threads);
  parallel((rows + step - 1) / step, threads, [&](int i) {
    Job job{weights, row_bytes, cols, i * step, std::min(rows, (i + 1) * step), nullptr, 0, 0, 0, to.data(),
            weights + row_bytes * size_t(rows)};
    panels.fill(job, 0, tokens);
    format.rows(job);
  });
}

void expert_rows(const Level& level, const Matrices* gate, const Matrices& up, const Matrices& down, Gate kind,
                 const float* x, const int32_t* ids, int tokens, int k, float* out, int threads) {
  if (threads <= 0) threads = usable_cores();
  thread_local Memory for_up, for_gate, for_down, for_middle, for_gates;
  std::vector<int> places;
  const std::vector<Group> groups = by_expert(ids, tokens * k, places);
  if (groups.empty()) return;
  const int hidden = up.rows, width = down.rows, rows = int(places.size()), experts = int(groups.size());

  // one token is rounded once for all its experts; of several, each expert has its own panel
  const bool shared = tokens == 1 && groups[0].count == 1;
  const bool other = gate && gate->format->rounding != up.format->rounding;
  Panels up_x(for_up, level, up.format->rounding, up.cols, shared ? 1 : rows);
  Panels gate_x(for_gate, level, other ? gate->format->rounding : up.format->rounding, up.cols, other ? (shared ? 1 : rows) : 0);
  if (shared) {
    up_x.round(x, 0, up.cols, 0, 0, 1);
    if (other) gate_x.round(x, 0, up.cols, 0, 0, 1);
  } else {
    std::vector<const Group*> of(rows);
    for (const Group& g : groups)
      for (int i = 0; i < g.count; i++) of[g.first + i] = &g;
    parallel(rows, rows < 8 ? 1 : threads, [&](int i) {
      const float* row = x + size_t(places[i] / k) * up.cols;
      up_x.round(row, 0, up.cols, of[i]->first, i - of[i]->first, of[i]->count);
      if (other) gate_x.round(row, 0, up.cols, of[i]->first, i - of[i]->first, of[i]->count);
    });
  }

  float* middle = reinterpret_cast<float*>(for_middle.of(size_t(rows) * hidden * 4));
  float* gates = reinterpret_cast<float*>(for_gates.of(gate ? size_t(rows) * hidden * 4 : 0));
  Panels down_x(for_down, level, down.format->rounding, hidden, rows);
  std::vector<float*> to_middle(rows), to_gates(rows), to_out(rows);
  for (int i = 0; i < rows; i++) {
    to_middle[i] = middle + size_t(i) * hidden;
    to_gates[i] = gate ? gates + size_t(i) * hidden : nullptr;
    to_out[i] = out + size_t(places[i]) * width;
  }

  // One queue: first the rows of gate and up of each expert; whoever ends a slice of the middle rounds it; then the rows
  // of down, which wait for the middle of their expert. Tasks are taken in order, so what is waited for is under way.
  const int step = middle_rows_a_task(hidden, experts, tokens, threads), slice = std::max(step, 256);
  const int parts = (hidden + step - 1) / step, slices = (hidden + slice - 1) / slice;
  const int down_step = rows_a_task(width, down.row_bytes, groups[0].count, experts, threads);
  const int down_parts = (width + down_step - 1) / down_step;
  std::unique_ptr<std::atomic<int>[]> left(new std::atomic<int>[size_t(experts) * slices]);
  std::unique_ptr<std::atomic<int>[]> unready(new std::atomic<int>[experts]);
  for (int e = 0; e < experts; e++) {
    unready[e].store(slices, std::memory_order_relaxed);
    for (int s = 0; s < slices; s++)
      left[size_t(e) * slices + s].store((std::min(slice, hidden - s * slice) + step - 1) / step, std::memory_order_relaxed);
  }
  parallel(experts * (parts + down_parts), threads, [&](int i) {
    if (i < experts * parts) {
      const int e = i / parts, begin = i % parts * step, end = std::min(begin + step, hidden);
      const Group& g = groups[e];
      multiply(up, up_x, shared ? 0 : g.first, g, begin, end, &to_middle[g.first]);
      if (gate) multiply(*gate, other ? gate_x : up_x, shared ? 0 : g.first, g, begin, end, &to_gates[g.first]);
      for (int t = g.first; t < g.first + g.count; t++)
        level.gate(kind, gate ? to_gates[t] + begin : nullptr, to_middle[t] + begin, end - begin);
      const int s = begin / slice, from = s * slice, n = std::min(slice, hidden - from);
      if (left[size_t(e) * slices + s].fetch_sub(1, std::memory_order_acq_rel) > 1) return;
      for (int t = 0; t < g.count; t++) down_x.round(to_middle[g.first + t] + from, from, n, g.first, t, g.count);
      unready[e].fetch_sub(1, std::memory_order_release);
    } else {
      i -= experts * parts;
      const int e = i / down_parts, begin = i % down_parts * down_step, end = std::min(begin + down_step, width);
      for (int spins = 0; unready[e].load(std::memory_order_acquire) > 0; spins++) relax(spins);
      multiply(down, down_x, groups[e].first, groups[e], begin, end, &to_out[groups[e].first]);
    }
  });
}

void combine(const float* rows, const float* weights, const int32_t* ids, int tokens, int k, int width, float* y,
             int threads) {
  parallel(tokens, tokens < 4 ? 1 : threads, [&](int t) {
    float* to = y + size_t(t) * width;
    std::fill(to, to + width, 0.0f);
    for (int j = 0; j < k; j++) {
      size_t place = size_t(t) * k + j;
      if (ids[place] < 0) continue;
      const float* from = rows + place * width;
      for (int i = 0; i < width; i++) to[i] = to[i] + weights[place] * from[i];
    }
  });
}

}  // namespace gmoe

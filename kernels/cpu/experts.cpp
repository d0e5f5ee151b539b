#include "experts.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <new>
#include <vector>

#include "pool.h"

namespace gmoe {
namespace {

constexpr size_t task_bytes = 256 << 10;  // smaller tasks read memory more slowly

struct Free {
  void operator()(char* p) const { ::operator delete(p, std::align_val_t(64)); }
};

// Activations rounded as a format wants them, a row each.
class Rounded {
 public:
  Rounded(const Level& level, Rounding kind, const float* x, int n, int count, int threads)
      : stride_(blocks(kind) ? size_t(n + 255) / 256 * sizeof(Activation) : (size_t(n) * 4 + 63) / 64 * 64),
        memory_(static_cast<char*>(::operator new(std::max<size_t>(stride_ * count, 1), std::align_val_t(64)))) {
    auto round = [&](int i) { level.round(x + size_t(i) * n, n, kind, memory_.get() + i * stride_); };
    if (count == 1) round(0);
    else parallel(count, threads, round);
  }
  const void* row(int i) const { return memory_.get() + i * stride_; }

 private:
  static bool blocks(Rounding kind) { return kind == Rounding::wide || kind == Rounding::narrow; }
  size_t stride_;
  std::unique_ptr<char, Free> memory_;
};

// Rows a task takes: enough bytes to read well, few enough that every thread has several.
int rows_a_task(int rows, size_t row_bytes, int tokens, int tasks_wanted) {
  size_t by_bytes = task_bytes / std::max<size_t>(1, row_bytes * std::min(tokens, 8));
  size_t by_share = size_t(rows) / std::max(1, tasks_wanted);
  size_t most = std::max<size_t>(16, std::max(by_bytes, std::min<size_t>(by_share, 64)));
  return int((most + 15) / 16 * 16);
}

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

float gated(Gate kind, float gate, float up) {
  switch (kind) {
    case Gate::swiglu: return gate * sigmoid(gate) * up;
    case Gate::geglu:
      return 0.5f * gate * (1.0f + std::tanh(0.79788456080286536f * (gate + 0.044715f * gate * gate * gate))) * up;
    case Gate::reglu: return std::max(gate, 0.0f) * up;
    case Gate::relu2: return std::max(up, 0.0f) * std::max(up, 0.0f);
    case Gate::swiglu_oai:
      gate = std::min(gate, 7.0f);
      up = std::min(std::max(up, -7.0f), 7.0f);
      return gate * sigmoid(1.702f * gate) * (up + 1.0f);
  }
  return 0.0f;
}

struct Chosen {  // an expert and its places in the flattened [tokens][k]
  int expert;
  std::vector<int> places;
};

std::vector<Chosen> by_expert(const int32_t* ids, int count) {
  std::vector<int> order;
  for (int i = 0; i < count; i++)
    if (ids[i] >= 0) order.push_back(i);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return ids[a] < ids[b]; });
  std::vector<Chosen> chosen;
  for (int place : order) {
    if (chosen.empty() || chosen.back().expert != ids[place]) chosen.push_back({ids[place], {}});
    chosen.back().places.push_back(place);
  }
  return chosen;
}

struct Task {
  const Chosen* chosen;
  int begin, end;  // rows
};

std::vector<Task> row_tasks(const std::vector<Chosen>& chosen, const Matrices& m, size_t row_bytes, int threads) {
  std::vector<Task> tasks;
  size_t wanted = 4 * size_t(threads) / std::max<size_t>(1, chosen.size()) + 1;
  for (const Chosen& c : chosen) {
    int step = rows_a_task(m.rows, row_bytes, int(c.places.size()), int(wanted));
    for (int r = 0; r < m.rows; r += step) tasks.push_back({&c, r, std::min(r + step, m.rows)});
  }
  std::stable_sort(tasks.begin(), tasks.end(),
                   [](const Task& a, const Task& b) { return a.chosen->places.size() > b.chosen->places.size(); });
  return tasks;
}

// `m` of one expert times the rounded rows `x`, plus the bias.
void multiply(const Matrices& m, const Task& task, const std::vector<const void*>& x, const std::vector<float*>& out) {
  int expert = task.chosen->expert;
  const uint8_t* weights = reinterpret_cast<const uint8_t*>(static_cast<intptr_t>(m.address[expert]));
  m.format->rows({weights, m.row_bytes, m.cols, task.begin, task.end, x.data(), int(x.size()), out.data()});
  if (!m.bias) return;
  const float* bias = m.bias + size_t(expert) * m.rows;
  for (float* y : out)
    for (int r = task.begin; r < task.end; r++) y[r] += bias[r];
}

}  // namespace

void matmul(const Level& level, const Format& format, const uint8_t* weights, size_t row_bytes, int rows, int cols,
            const float* x, int tokens, float* out, int threads) {
  if (threads <= 0) threads = usable_cores();
  Rounded rounded(level, format.rounding, x, cols, tokens, threads);
  std::vector<const void*> from;
  std::vector<float*> to;
  for (int t = 0; t < tokens; t++) {
    from.push_back(rounded.row(t));
    to.push_back(out + size_t(t) * rows);
  }
  int step = rows_a_task(rows, row_bytes, tokens, 4 * threads);
  parallel((rows + step - 1) / step, threads, [&](int i) {
    format.rows({weights, row_bytes, cols, i * step, std::min(rows, (i + 1) * step), from.data(), tokens, to.data()});
  });
}

void expert_rows(const Level& level, const Matrices* gate, const Matrices& up, const Matrices& down, Gate kind,
                 const float* x, const int32_t* ids, int tokens, int k, float* out, int threads) {
  if (threads <= 0) threads = usable_cores();
  const std::vector<Chosen> chosen = by_expert(ids, tokens * k);
  const int hidden = up.rows, width = down.rows;
  Rounded for_up(level, up.format->rounding, x, up.cols, tokens, threads);
  std::unique_ptr<Rounded> own;
  if (gate && gate->format->rounding != up.format->rounding)
    own = std::make_unique<Rounded>(level, gate->format->rounding, x, up.cols, tokens, threads);
  const Rounded& for_gate = own ? *own : for_up;

  std::vector<int> row_of(size_t(tokens) * k, -1);  // place -> row of the middle
  int rows = 0;
  for (const Chosen& c : chosen)
    for (int place : c.places) row_of[place] = rows++;
  std::unique_ptr<float[]> middle(new float[size_t(rows) * hidden]);
  std::unique_ptr<float[]> gates(gate ? new float[size_t(rows) * hidden] : nullptr);

  std::vector<Task> tasks = row_tasks(chosen, up, up.row_bytes + (gate ? gate->row_bytes : 0), threads);
  parallel(int(tasks.size()), threads, [&](int i) {
    const Task& task = tasks[i];
    std::vector<const void*> from_up, from_gate;
    std::vector<float*> to_up, to_gate;
    for (int place : task.chosen->places) {
      from_up.push_back(for_up.row(place / k));
      from_gate.push_back(for_gate.row(place / k));
      to_up.push_back(middle.get() + size_t(row_of[place]) * hidden);
      if (gate) to_gate.push_back(gates.get() + size_t(row_of[place]) * hidden);
    }
    multiply(up, task, from_up, to_up);
    if (gate) multiply(*gate, task, from_gate, to_gate);
    for (size_t n = 0; n < to_up.size(); n++)
      for (int r = task.begin; r < task.end; r++) to_up[n][r] = gated(kind, gate ? to_gate[n][r] : 0.0f, to_up[n][r]);
  });

  Rounded for_down(level, down.format->rounding, middle.get(), hidden, rows, threads);
  tasks = row_tasks(chosen, down, down.row_bytes, threads);
  parallel(int(tasks.size()), threads, [&](int i) {
    const Task& task = tasks[i];
    std::vector<const void*> from;
    std::vector<float*> to;
    for (int place : task.chosen->places) {
      from.push_back(for_down.row(row_of[place]));
      to.push_back(out + size_t(place) * width);
    }
    multiply(down, task, from, to);
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

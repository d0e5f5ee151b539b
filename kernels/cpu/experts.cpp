#include "experts.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "memory.h"
#include "panels.h"
#include "pool.h"

namespace gmoe {
namespace {

constexpr size_t task_bytes = 256 << 10;  // smaller tasks read memory more slowly
constexpr int slice = 256;                // elements between up and down that are rounded at once
constexpr size_t past_bytes = 1 << 20;    // of results that are written past the caches
constexpr int few_tokens = 16;            // below, results are summed after all of them are there
constexpr int band_rows = 128;            // outputs that are summed over all experts, or less where tokens are many:
constexpr size_t band_bytes = 256 << 10;  // their sums should stay in the second cache

// Of the calling thread, for the panels of one call after the other.
Memory& panel_memory() {
  thread_local Memory memory;
  return memory;
}

struct Group {  // an expert and its tokens, or as many of them as the levels take at once
  int expert, first, count;  // rows [first, first + count) of the places sorted by expert
  int number;                // of the groups in the order of those rows
};

// The places of the flattened ids [tokens][k] sorted by expert, absent ones left out; those with most tokens first.
std::vector<Group> by_expert(const int32_t* ids, int count, std::vector<int>& places) {
  places.clear();
  for (int i = 0; i < count; i++)
    if (ids[i] >= 0) places.push_back(i);
  std::stable_sort(places.begin(), places.end(), [&](int a, int b) { return ids[a] < ids[b]; });
  std::vector<Group> groups;
  for (int i = 0; i < int(places.size()); i++) {
    if (groups.empty() || groups.back().expert != ids[places[i]] || groups.back().count == group_rows)
      groups.push_back({ids[places[i]], i, 0, int(groups.size())});
    groups.back().count++;
  }
  std::stable_sort(groups.begin(), groups.end(), [](const Group& a, const Group& b) { return a.count > b.count; });
  return groups;
}

// Rows of a matrix that a task takes: enough bytes to read well, and several tiles, of which only the first may come
// unasked; few enough that every thread has several of the `all` rows that there are; whole tiles of 16.
int rows_a_task(int rows, int all, size_t row_bytes, int tokens, int threads) {
  size_t by_bytes = task_bytes / std::max<size_t>(1, row_bytes * size_t(std::min(tokens, 16)));
  size_t by_share = size_t(all) / size_t(threads * 4);
  size_t most = std::max<size_t>(tokens > 1 ? 16 : 32, std::min(std::max<size_t>(by_bytes, 128), by_share));
  return int((std::min<size_t>(most, size_t(rows)) + 15) / 16 * 16);
}

// Rows of an expert that a task takes of `rows`: a power of two up to a slice, few enough that every thread has
// several.
int rows_a_step(int rows, int experts, int threads) {
  int step = slice;
  while (step > 32 && (rows + step - 1) / step * experts < 4 * threads) step /= 2;
  return step;
}

// `n` products become scale * product + bias, where there is one.
void finish(float scale, const float* bias, float* y, int n) {
  for (int r = 0; scale != 1.0f && r < n; r++) y[r] *= scale;
  for (int r = 0; bias && r < n; r++) y[r] += bias[r];
}

// Where the rows of a group's expert lie from row `begin` on.
const uint8_t* rows_of(const Matrices& m, const Group& group, int begin) {
  return reinterpret_cast<const uint8_t*>(static_cast<intptr_t>(m.address[group.expert])) + m.row_bytes * size_t(begin);
}

// Rows [begin, end) of a group's expert times its tokens, which `job` has; row `begin` of token i goes to out[i][0].
void multiply(const Matrices& m, Job job, const Group& group, int begin, int end, float* const* out) {
  const uint8_t* weights = rows_of(m, group, 0);
  job.weights = rows_of(m, group, begin);
  job.row_bytes = m.row_bytes;
  job.cols = m.cols;
  job.begin = 0;
  job.end = end - begin;
  job.out = out;
  job.stop = weights + m.row_bytes * size_t(m.rows);
  m.format->rows(job);
  const float* bias = m.bias ? m.bias + size_t(group.expert) * m.rows + begin : nullptr;
  for (int t = 0; t < group.count; t++) finish(m.scale ? m.scale[group.expert] : 1.0f, bias, out[t], end - begin);
}

// The places of one token's k experts by the number of the expert, absent ones left out.
void by_number(const int32_t* ids, int k, std::vector<int>& places) {
  places.clear();
  for (int j = 0; j < k; j++)
    if (ids[j] >= 0) places.push_back(j);
  std::sort(places.begin(), places.end(), [&](int a, int b) { return ids[a] != ids[b] ? ids[a] < ids[b] : a < b; });
}

// Outputs of which all tokens' sums are there at a time; every thread has several.
int rows_a_band(int width, int tokens, int threads) {
  const size_t room = band_bytes / sizeof(float) / size_t(std::max(1, tokens));
  const size_t most = std::min(room, size_t(width / (4 * threads)));
  int band = band_rows;
  while (band > 32 && size_t(band) > most) band /= 2;
  return band;
}

// Whether results are so many that they would only drive others out of the caches, and lie as `Job.past` wants it.
bool past_caches(const Product& m, int tokens) {
  const size_t row = sizeof(float) * size_t(m.rows);
  if (m.bias || m.scale != 1.0f) return false;  // they are read again
  return row * size_t(tokens) >= past_bytes && row % 64 == 0 && reinterpret_cast<uintptr_t>(m.out) % 64 == 0;
}

void wait_for(const std::atomic<int>& left) {
  for (int spins = 0; left.load(std::memory_order_acquire) > 0; spins++) relax(spins);
}

std::unique_ptr<std::atomic<int>[]> counters(int count, int value) {
  std::unique_ptr<std::atomic<int>[]> all(new std::atomic<int>[size_t(count)]);
  for (int i = 0; i < count; i++) all[i].store(value, std::memory_order_relaxed);
  return all;
}

// The experts of one call and their tokens. Its tasks are taken in order from one queue, so that what a task waits for
// is under way: first the rows of gate and up of each expert, then rows of down, which wait for their expert only.
class Pass {
 public:
  Pass(const Level& level, const Matrices* gate, const Matrices& up, const Matrices& down, Gate kind, const float* x,
       const int32_t* ids, int tokens, int k, int threads)
      : level_(level), gate_(gate), up_(up), down_(down), kind_(kind), threads_(threads),
        groups_(by_expert(ids, tokens * k, places_)), number_(++passes()), k_(k),
        other_(gate && gate->format->rounding != up.format->rounding),
        up_x_(level, up.format->rounding, up.cols, tokens, x),
        gate_x_(level, other_ ? gate->format->rounding : up.format->rounding, up.cols, other_ ? tokens : 0, x),
        down_x_(level, down.format->rounding, up.rows, rows(), nullptr, experts(), down.format->eights),
        up_eights_(level, up.format->eights || (gate && !other_ && gate->format->eights), up.cols),
        gate_eights_(level, gate && gate->format->eights, up.cols), hidden_(up.rows),
        step_(rows_a_step(up.rows, experts(), threads)), parts_((hidden_ + step_ - 1) / step_),
        slices_((hidden_ + slice - 1) / slice), unready_(counters(experts(), slices_)),
        left_(counters(experts() * slices_, slice / step_)) {
    numbered_.resize(groups_.size());
    for (int e = 0; e < experts(); e++) numbered_[groups_[e].number] = e;
    for (int e = 0; e < experts(); e++)
      left_[e * slices_ + slices_ - 1].store((hidden_ - (slices_ - 1) * slice + step_ - 1) / step_);
    const size_t middle = step_ < slice ? 2 * sizeof(float) * size_t(rows()) * slices_ * slice : 0;
    char* memory = panel_memory().of(up_x_.bytes() + gate_x_.bytes() + down_x_.bytes() + middle);
    for (Panels* panels : {&up_x_, &gate_x_, &down_x_}) panels->take(memory);
    middle_ = middle ? reinterpret_cast<float*>(memory) : nullptr;
    round(x, tokens);
  }

  int experts() const { return int(groups_.size()); }
  int rows() const { return int(places_.size()); }
  int middle_tasks() const { return experts() * parts_; }
  const Group& group(int e) const { return groups_[e]; }
  int numbered(int number) const { return numbered_[number]; }  // the group, where they are in the order of experts
  int place(int row) const { return places_[row]; }  // in the flattened ids

  // Rows of gate and up; whoever ends a slice of the middle rounds it. Neighbouring tasks have different experts, one
  // for each thread, so that a thread mostly stays with one and gathers its tokens once.
  void middle(int i) const {
    const auto [e, begin] = middle_rows(i);
    const int end = std::min(begin + step_, hidden_);
    const int s = begin / slice, from = s * slice, n = std::min(slice, hidden_ - from);
    const Group& g = groups_[e];
    thread_local Own own;
    const size_t size = size_t(g.count) * slice;  // a row of one slice of each token
    float* ups = middle_ ? middle_ + 2 * (size_t(s) * rows() + g.first) * slice : own.middle.floats(2 * size);
    float* gates = ups + size;
    std::vector<float*> to(size_t(g.count));
    auto outputs = [&](float* first) {
      for (int t = 0; t < g.count; t++) to[t] = first + size_t(t) * slice + begin - from;
      return to.data();
    };
    gather(own, e);
    Job job = given(up_x_, up_eights_, own.up, g);
    const uint8_t* then = nullptr;
    if (i + threads_ < middle_tasks()) {
      const auto [after, row] = middle_rows(i + threads_);
      then = rows_of(up_, groups_[after], row);
    }
    job.next = gate_ ? rows_of(*gate_, g, begin) : then;
    multiply(up_, job, g, begin, end, outputs(ups));
    if (gate_) {
      if (other_) job = given(gate_x_, gate_eights_, own.gate, g);
      job.next = then;
      multiply(*gate_, job, g, begin, end, outputs(gates));
    }
    for (int t = 0; t < g.count; t++) {
      const size_t at = size_t(t) * slice + begin - from;
      level_.gate(kind_, gate_ ? gates + at : nullptr, ups + at, end - begin);
    }
    if (left_[e * slices_ + s].fetch_sub(1, std::memory_order_acq_rel) > 1) return;
    for (int t = 0; t < g.count; t++) down_x_.round(ups + size_t(t) * slice, from, n, g.number, g.first, t, g.count);
    if (s < down_x_.pieces(g.count)) down_x_.put_side_by_side(s, g.number, g.first, g.count);
    unready_[e].fetch_sub(1, std::memory_order_release);
  }

  // `after`: the expert of which this thread probably takes rows afterwards, from row `row`, if there is one.
  void down(int e, int begin, int end, float* const* out, int after, int row) const {
    wait_for(unready_[e]);
    Job job{};
    job.next = after < experts() ? rows_of(down_, groups_[after], row) : nullptr;
    down_x_.fill(job, groups_[e].number, groups_[e].first, groups_[e].count);
    multiply(down_, job, groups_[e], begin, end, out);
  }

 private:
  struct Held {  // the rows of an expert's tokens side by side, for the next task of the same expert too
    Memory memory;
    char *rows = nullptr, *eights = nullptr;
  };
  struct Own {  // of a thread
    Memory middle;
    Held up, gate;
    uint64_t pass = 0;
    int expert = 0;
  };
  static std::atomic<uint64_t>& passes() {
    static std::atomic<uint64_t> count{0};
    return count;
  }

  // Expert and first row of a task.
  std::pair<int, int> middle_rows(int i) const {
    const int side = threads_ * parts_, first = i / side * threads_, among = std::min(threads_, experts() - first);
    return {first + i % side % among, i % side / among * step_};
  }
  void gather(Own& own, int e) const {
    const Group& g = groups_[e];
    if (g.count == 1 || (own.pass == number_ && own.expert == e)) return;
    std::vector<int> tokens(size_t(g.count));
    for (int i = 0; i < g.count; i++) tokens[i] = places_[g.first + i] / k_;
    auto hold = [&](const Panels& panels, const Eights& eights, Held& held) {
      held.rows = held.memory.of(panels.bytes(g.count) + eights.bytes(g.count));
      held.eights = held.rows + panels.bytes(g.count);
      panels.gather(tokens.data(), g.count, held.rows);
      for (int i = 0; i < eights.pieces(g.count); i++) eights.put(i, held.rows, g.count, held.eights);
    };
    hold(up_x_, up_eights_, own.up);
    if (other_) hold(gate_x_, gate_eights_, own.gate);
    own.pass = number_;
    own.expert = e;
  }
  Job given(const Panels& panels, const Eights& eights, const Held& held, const Group& g) const {
    Job job{};
    if (g.count == 1) {
      panels.fill_row(job, places_[g.first] / k_);
    } else {
      panels.fill(job, held.rows, g.count, g.count);
      eights.fill(job, g.count, held.eights);
    }
    return job;
  }

  // A token is rounded once for all its experts; one that has none is not.
  void round(const float* x, int tokens) const {
    std::vector<char> wanted(size_t(tokens), 0);
    for (int place : places_) wanted[place / k_] = 1;
    parallel(tokens, rows() < 8 ? 1 : threads_, [&](int t) {
      if (!wanted[t]) return;
      up_x_.round(x + size_t(t) * up_.cols, 0, up_.cols, 0, 0, t, tokens);
      if (other_) gate_x_.round(x + size_t(t) * up_.cols, 0, up_.cols, 0, 0, t, tokens);
    });
  }

  const Level& level_;
  const Matrices* gate_;
  const Matrices &up_, &down_;
  Gate kind_;
  int threads_;
  std::vector<int> places_;
  const std::vector<Group> groups_;
  std::vector<int> numbered_;
  const uint64_t number_;
  const int k_;
  const bool other_;  // gate wants another rounding than up
  Panels up_x_, gate_x_, down_x_;  // the tokens as they are, twice; and the places sorted by expert
  const Eights up_eights_, gate_eights_;  // of the tokens of one expert
  const int hidden_, step_, parts_, slices_;
  std::unique_ptr<std::atomic<int>[]> unready_, left_;
  float* middle_;  // of all rows, where a task has less than a slice: [slices] of ups, then gates of each group
};

}  // namespace

void matmul(const Level& level, const Product* products, int count, int cols, const float* x, int tokens, int threads) {
  if (threads <= 0) threads = usable_cores();
  constexpr int kinds = int(Rounding::none) + 1;
  std::optional<Panels> panels[kinds];  // x, rounded as these matrices want it
  size_t bytes = 0;
  std::vector<int> begins{0}, steps;    // the tasks of each, and the rows of one
  std::vector<float*> to;
  int rows = 0;
  bool eights[kinds] = {};
  for (int p = 0; p < count; p++) {
    rows += products[p].rows;
    eights[int(products[p].format->rounding)] |= products[p].format->eights;
  }
  for (int p = 0; p < count; p++) {
    const Product& m = products[p];
    const int kind = int(m.format->rounding);
    if (!panels[kind]) {
      panels[kind].emplace(level, m.format->rounding, cols, tokens, x, 1, eights[kind]);
      bytes += panels[kind]->bytes();
    }
    steps.push_back(rows_a_task(m.rows, rows, m.row_bytes, tokens, threads));
    begins.push_back(begins.back() + (m.rows + steps.back() - 1) / steps.back());
    for (int t = 0; t < tokens; t++) to.push_back(m.out + size_t(t) * m.rows);
  }
  if (bytes) {
    char* memory = panel_memory().of(bytes);
    for (auto& p : panels)
      if (p) p->take(memory);
    parallel(tokens, tokens < 8 ? 1 : threads, [&](int t) {
      for (const auto& p : panels)
        if (p) p->round(x + size_t(t) * cols, 0, cols, 0, 0, t, tokens);
    });
    for (const auto& p : panels)
      if (p) parallel(p->pieces(tokens), threads, [&](int i) { p->put_side_by_side(i, 0, 0, tokens); });
  }
  auto matrix_of = [&](int task) {
    return int(std::upper_bound(begins.begin(), begins.end(), task) - begins.begin()) - 1;
  };
  auto rows_of = [&](int task) -> const uint8_t* {  // where they begin
    if (task >= begins.back()) return nullptr;
    const int p = matrix_of(task);
    return products[p].weights + products[p].row_bytes * size_t((task - begins[p]) * steps[p]);
  };
  parallel(begins.back(), threads, [&](int i) {
    const int p = matrix_of(i);
    const Product& m = products[p];
    const int begin = (i - begins[p]) * steps[p], end = std::min(m.rows, begin + steps[p]);
    Job job{m.weights, m.row_bytes, cols, begin, end, nullptr, 0, 0, 0, &to[size_t(p) * tokens],
            m.weights + m.row_bytes * size_t(m.rows), rows_of(i + threads)};
    panels[int(m.format->rounding)]->fill(job, 0, 0, tokens);
    job.past = past_caches(m, tokens);
    m.format->rows(job);
    for (int t = 0; t < tokens; t++)
      finish(m.scale, m.bias ? m.bias + begin : nullptr, m.out + size_t(t) * m.rows + begin, end - begin);
  });
}

void matmul_by_head(const Level& level, const Product* heads, int count, int cols, ByHead<const float> x, int tokens,
                    ByHead<float> out, int threads) {
  if (threads <= 0) threads = usable_cores();
  const Product& first = heads[0];
  Panels panels(level, first.format->rounding, cols, count * tokens, nullptr, count);
  char* memory = panel_memory().of(panels.bytes());
  panels.take(memory);
  std::vector<float*> to;
  for (int h = 0; h < count; h++)
    for (int t = 0; t < tokens; t++) to.push_back(out.at(t, h));
  parallel(count, tokens < 8 ? 1 : threads, [&](int h) {
    for (int t = 0; t < tokens; t++) panels.round(x.at(t, h), 0, cols, h, h * tokens, t, tokens);
  });
  const int step = rows_a_task(first.rows, first.rows * count, first.row_bytes, tokens, threads);
  const int parts = (first.rows + step - 1) / step;
  parallel(count * parts, threads, [&](int i) {
    const int h = i / parts, begin = i % parts * step;
    const Product& m = heads[h];
    Job job{m.weights, m.row_bytes, cols, begin, std::min(m.rows, begin + step), nullptr, 0, 0, 0,
            &to[size_t(h) * tokens], m.weights + m.row_bytes * size_t(m.rows)};
    const int then = i + threads;
    if (then < count * parts) job.next = heads[then / parts].weights + m.row_bytes * size_t(then % parts * step);
    panels.fill(job, h, h * tokens, tokens);
    m.format->rows(job);
  });
}

void expert_rows(const Level& level, const Matrices* gate, const Matrices& up, const Matrices& down, Gate kind,
                 const float* x, const int32_t* ids, int tokens, int k, float* out, int threads) {
  if (threads <= 0) threads = usable_cores();
  const Pass pass(level, gate, up, down, kind, x, ids, tokens, k, threads);
  if (!pass.experts()) return;
  const int width = down.rows, all = width * pass.experts();
  const int step = rows_a_task(width, all, down.row_bytes, pass.group(0).count, threads);
  const int parts = (width + step - 1) / step;
  parallel(pass.middle_tasks() + pass.experts() * parts, threads, [&](int i) {
    if (i < pass.middle_tasks()) return pass.middle(i);
    i -= pass.middle_tasks();
    const Group& g = pass.group(i / parts);
    const int begin = i % parts * step;
    std::vector<float*> to(size_t(g.count));
    for (int t = 0; t < g.count; t++) to[t] = out + size_t(pass.place(g.first + t)) * width + begin;
    const int then = i + threads;
    pass.down(i / parts, begin, std::min(begin + step, width), to.data(), then / parts, then % parts * step);
  });
}

void expert_mlp(const Level& level, const Matrices* gate, const Matrices& up, const Matrices& down, Gate kind,
                const float* x, const int32_t* ids, const float* weights, int tokens, int k, float* y, int threads) {
  if (threads <= 0) threads = usable_cores();
  const int width = down.rows, band = rows_a_band(width, tokens, threads), bands = (width + band - 1) / band;
  if (tokens < few_tokens || bands < threads) {
    thread_local Memory kept;
    float* rows = kept.floats(size_t(tokens) * k * width);
    expert_rows(level, gate, up, down, kind, x, ids, tokens, k, rows, threads);
    return combine(level, rows, weights, ids, tokens, k, width, y, threads);
  }
  const Pass pass(level, gate, up, down, kind, x, ids, tokens, k, threads);
  auto sum = [&](int from, int n) {
    thread_local Memory kept_sums, kept_rows;
    float* sums = kept_sums.floats(size_t(tokens) * band);
    float* rows = kept_rows.floats(size_t(group_rows) * band);
    float* to[group_rows];
    for (int t = 0; t < group_rows; t++) to[t] = rows + size_t(t) * band;
    std::memset(sums, 0, sizeof(float) * size_t(tokens) * band);
    for (int i = 0; i < pass.experts(); i++) {
      const int e = pass.numbered(i);
      const Group& g = pass.group(e);
      pass.down(e, from, from + n, to, i + 1 < pass.experts() ? pass.numbered(i + 1) : pass.experts(), from);
      for (int t = 0; t < g.count; t++) {
        const int place = pass.place(g.first + t);
        level.add(sums + size_t(place / k) * band, weights[place], to[t], n);
      }
    }
    for (int t = 0; t < tokens; t++)
      std::memcpy(y + size_t(t) * width + from, sums + size_t(t) * band, sizeof(float) * size_t(n));
  };
  parallel(pass.middle_tasks() + bands, threads, [&](int i) {
    if (i < pass.middle_tasks()) return pass.middle(i);
    const int from = (i - pass.middle_tasks()) * band;
    sum(from, std::min(band, width - from));
  });
}

void combine(const Level& level, const float* rows, const float* weights, const int32_t* ids, int tokens, int k,
             int width, float* y, int threads) {
  parallel(tokens, tokens < 4 ? 1 : threads, [&](int t) {
    thread_local std::vector<int> places;
    by_number(ids + size_t(t) * k, k, places);
    float* to = y + size_t(t) * width;
    std::fill(to, to + width, 0.0f);
    for (int j : places) {
      const size_t place = size_t(t) * k + j;
      level.add(to, weights[place], rows + place * width, width);
    }
  });
}

}  // namespace gmoe

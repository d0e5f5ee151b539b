// The recurrent layers' kernels on all threads: who does what never changes a result.
#include "states.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "memory.h"
#include "over_rows.h"
#include "pool.h"
#include "step.h"

namespace gmoe {
namespace {

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

float* scratch(size_t floats) {
  static thread_local Memory memory;
  return memory.floats(floats);
}

// All sequences through all heads' matrices: those of one token a share of the heads a task, others a band of one.
template <class Rule, class One, class Many>
void over_heads(const Rule& rule, const Paths& p, int threads, One one, Many many) {
  if (!p.sequences) return;
  if (threads <= 0) threads = usable_cores();
  struct Share {
    int sequence, first, until;  // heads of a sequence of one token, else a head and where its band begins
  };
  std::vector<int> order(size_t(p.sequences));
  for (int s = 0; s < p.sequences; s++) order[size_t(s)] = s;
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return p.rows(a) > p.rows(b); });
  const int heads = rule.heads, bands = (rule.dv + matrix_band - 1) / matrix_band;
  const int parts = std::min(heads, std::max(1, 2 * threads / p.sequences));
  std::vector<Share> shares;
  for (int s : order) {
    const bool single = p.rows(s) == 1;
    for (int i = 0; single && i < parts; i++) shares.push_back({s, heads * i / parts, heads * (i + 1) / parts});
    for (int i = 0; !single && i < heads * bands; i++) shares.push_back({s, i / bands, i % bands * matrix_band});
  }
  const size_t whole = size_t(rule.dv + 15) / 16 * 16;
  const size_t floats = std::max(3 * whole, size_t(rule.dk) * matrix_band);
  parallel(int(shares.size()), threads, [&](int i) {
    const Share& share = shares[size_t(i)];
    const int s = share.sequence;
    float* own = scratch(floats);
    if (p.rows(s) != 1) return many(rule, p, s, share.first, share.until, own);
    for (int h = share.first; h < share.until; h++) {
      const bool last = h + 1 == share.until || p.source[s] < 0;
      one(rule, p, s, h, last ? nullptr : rule.slot(p.source[s], h + 1), own);
    }
  });
}

// What comes once all heads are done, for the tokens of sequences that have more than one.
template <class Rule>
void behind_many(const Rule& rule, const Paths& p, int threads, void (*out)(const Rule&, int token)) {
  bool many = false;
  for (int s = 0; s < p.sequences; s++) many = many || p.rows(s) > 1;
  if (!many) return;
  over_rows(rule.tokens, size_t(rule.heads) * rule.dv, threads, [&](int from, int until) {
    int s = 0;
    for (int t = from; t < until; t++) {
      while (p.starts[s + 1] <= t) s++;
      if (p.rows(s) != 1) out(rule, t);
    }
  });
}

// All sequences through all channels, sixteen or more of them a task, or at once where there is little to do.
template <class Work>
void over_channels(int channels, int elements, const Paths& p, int threads, const Work& work) {
  if (threads <= 0) threads = usable_cores();
  const bool little = size_t(p.starts[p.sequences]) * channels * elements < 16384;
  const int lanes = (channels + 15) / 16, bands = little ? 1 : std::min(lanes, 4 * threads);
  parallel(p.sequences * bands, little ? 1 : threads, [&](int i) {
    const int band = i % bands;
    const int from = lanes * band / bands * 16, until = std::min(channels, lanes * (band + 1) / bands * 16);
    work(i / bands, from, until - from);
  });
}

}  // namespace

void check(const Paths& p, int rows, int slots) {
  static thread_local std::vector<int> owners;  // the sequence that writes a slot, + 1
  owners.assign(size_t(slots), 0);
  auto inside = [&](const char* what, int s, int slot, int least) {
    if (slot < least || slot >= slots)
      refuse("the " + std::string(what) + " of sequence " + std::to_string(s) + " is slot " + std::to_string(slot) +
             ", not one of " + std::to_string(slots));
  };
  auto own = [&](int s, int slot) {
    if (owners[size_t(slot)] && owners[size_t(slot)] != s + 1)
      refuse("sequences " + std::to_string(owners[size_t(slot)] - 1) + " and " + std::to_string(s) +
             " both go into slot " + std::to_string(slot));
    owners[size_t(slot)] = s + 1;
  };
  if (p.starts[0] != 0 || p.starts[p.sequences] != rows)
    refuse("the rows of the sequences go from " + std::to_string(p.starts[0]) + " to " +
           std::to_string(p.starts[p.sequences]) + ", not from 0 to " + std::to_string(rows));
  for (int s = 0; s < p.sequences; s++) {
    if (p.rows(s) < 0) refuse("sequence " + std::to_string(s) + " ends before it starts");
    inside("source", s, p.source[s], -1);
    inside("target", s, p.target[s], 0);
    inside("kept slot", s, p.kept[s], -1);
    own(s, p.target[s]);
    if (p.kept[s] < 0) continue;
    own(s, p.kept[s]);
    if (p.kept_after[s] < 1 || p.kept_after[s] > p.rows(s))
      refuse("sequence " + std::to_string(s) + " of " + std::to_string(p.rows(s)) + " rows cannot be kept after " +
             std::to_string(p.kept_after[s]));
  }
  for (int s = 0; s < p.sequences; s++)
    if (p.source[s] >= 0 && owners[size_t(p.source[s])] && owners[size_t(p.source[s])] != s + 1)
      refuse("sequence " + std::to_string(s) + " comes from slot " + std::to_string(p.source[s]) + ", into which " +
             std::to_string(owners[size_t(p.source[s])] - 1) + " goes");
}

void convolve(const Step& step, const Convolution& c, const Paths& p, int threads) {
  over_channels(c.channels, c.taps + 1, p, threads,
                [&](int s, int from, int count) { step.convolve(c, p, s, from, count); });
}

void learn(const Step& step, Delta d, const Paths& p, int threads) {
  static thread_local Memory memory;
  d.ready = memory.floats(d.ready_floats());
  over_rows(d.tokens, 2 * size_t(d.rule.n_key) * d.dk, threads, [&](int from, int until) {
    for (int t = from; t < until; t++) step.delta_ready(d, t);
  });
  over_heads(d, p, threads, step.delta_one, step.delta_many);
  behind_many(d, p, threads, step.delta_out);
}

void learn(const Step& step, Kimi k, const Paths& p, int threads) {
  static thread_local Memory memory;
  k.ready = memory.floats(k.ready_floats());
  // An exponential and a logarithm each element: a token alone is worth several threads.
  over_rows(k.tokens * k.heads, 8 * size_t(k.dk), threads, [&](int from, int until) {
    for (int i = from; i < until; i++) step.kimi_ready(k, i % k.heads, i / k.heads);
  });
  over_heads(k, p, threads, step.kimi_one, step.kimi_many);
  behind_many(k, p, threads, step.kimi_out);
}

void learn(const Step& step, Space space, const Paths& p, int threads) {
  static thread_local Memory memory;
  space.ready = memory.floats(space.ready_floats());
  over_rows(space.tokens, size_t(space.heads), threads, [&](int from, int until) {
    for (int t = from; t < until; t++) step.space_ready(space, t);
  });
  over_heads(space, p, threads, step.space_one, step.space_many);
  over_rows(space.tokens, size_t(space.heads) * space.dv, threads, [&](int from, int until) {
    for (int t = from; t < until; t++) step.space_out(space, t);
  });
}

void learn(const Step& step, const Channels& c, const Paths& p, int threads) {
  // An exponential each element.
  over_channels(c.channels, 4 * c.dk, p, threads,
                [&](int s, int from, int count) { step.learn_channels(c, p, s, from, count); });
}

}  // namespace gmoe

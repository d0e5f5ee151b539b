// Tape: the calls of a step, kept while they run once, to run again without Python between them.
#pragma once
#include <nanobind/nanobind.h>

#include <functional>
#include <utility>
#include <vector>

namespace gmoe {

class Tape {
 public:
  void add(std::function<void()> call) { calls_.push_back(std::move(call)); }
  size_t size() const { return calls_.size(); }
  void run() const {
    for (const auto& call : calls_) call();
  }

 private:
  std::vector<std::function<void()>> calls_;
};

// The tape that this thread records on, or null.
inline Tape*& recording() {
  thread_local Tape* tape = nullptr;
  return tape;
}

// What every door of a step goes through; `call` holds what it needs by value.
template <class Call>
void enter(Call call) {
  nanobind::gil_scoped_release unlocked;
  call();
  if (Tape* tape = recording()) tape->add(std::move(call));
}

}  // namespace gmoe

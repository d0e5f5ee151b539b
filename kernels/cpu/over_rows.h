// Rows shared out to threads.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "pool.h"

namespace gmoe {

// Rows in a few tasks a thread, or all at once where there is little to do.
template <class Work>
void over_rows(int rows, size_t elements, int threads, const Work& work) {
  if (threads <= 0) threads = usable_cores();
  if (rows < 2 || threads < 2 || size_t(rows) * elements < 16384) {
    work(0, rows);
    return;
  }
  int tasks = std::min(rows, 4 * threads);
  parallel(tasks, threads, [&](int i) { work(int(int64_t(rows) * i / tasks), int(int64_t(rows) * (i + 1) / tasks)); });
}

}  // namespace gmoe

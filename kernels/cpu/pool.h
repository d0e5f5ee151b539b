// Worker threads that spin for half a millisecond after a job and then sleep.
#pragma once
#include <functional>
#include <thread>

#include "cores.h"

namespace gmoe {

// Call task(i) for every i in [0, count) on up to `threads` threads (0: usable_cores()), the caller among them; they
// are taken in order. A task may wait for one with a smaller index; it must not throw or call `parallel` itself.
void parallel(int count, int threads, const std::function<void(int)>& task);

// One turn of a wait that has taken `spins` turns.
inline void relax(int spins) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
  if (spins > 2000) std::this_thread::yield();
}

}  // namespace gmoe

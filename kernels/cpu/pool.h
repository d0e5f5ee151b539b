// Worker threads that spin for a moment after a job and then sleep.
#pragma once
#include <functional>
#include <thread>

namespace gmoe {

// Cores that this process may run on.
int usable_cores();

// Call task(i) for every i in [0, count) on up to `threads` threads (0: usable_cores()), the caller among them; they are
// taken in order. A task may wait for one with a smaller index.
void parallel(int count, int threads, const std::function<void(int)>& task);

// One turn of a wait that has taken `spins` turns.
inline void relax(int spins) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
  if (spins > 20000) std::this_thread::yield();
}

}  // namespace gmoe

// Worker threads that spin for a moment after a job and then sleep.
#pragma once
#include <functional>

namespace gmoe {

// Cores that this process may run on.
int usable_cores();

// Call task(i) for every i in [0, count) on up to `threads` threads (0: usable_cores()), the caller among them.
void parallel(int count, int threads, const std::function<void(int)>& task);

}  // namespace gmoe

#include "pool.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

namespace gmoe {
namespace {

inline void pause_once() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

class Pool {
 public:
  void run(int count, int threads, const std::function<void(int)>& task) {
    std::lock_guard<std::mutex> one_job(callers_);
    while (int(workers_.size()) < threads - 1) {
      int id = int(workers_.size());
      workers_.emplace_back([this, id, seen = job_.load()] { work(id, seen); });
    }
    task_ = &task;
    count_ = count;
    helpers_ = threads - 1;
    next_.store(0);
    left_.store(int(workers_.size()));
    {
      std::lock_guard<std::mutex> lock(sleep_);
      job_.fetch_add(1);
    }
    wake_.notify_all();
    take();
    for (int spins = 0; left_.load(std::memory_order_acquire) > 0; spins++) spins < pauses ? pause_once() : std::this_thread::yield();
  }

 private:
  static constexpr int pauses = 20000;  // about half a millisecond

  void take() {
    for (int i; (i = next_.fetch_add(1)) < count_;) (*task_)(i);
  }

  void work(int id, unsigned seen) {
    for (;;) {
      for (int spins = 0; job_.load(std::memory_order_acquire) == seen && spins < pauses; spins++) pause_once();
      if (job_.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(sleep_);
        wake_.wait(lock, [&] { return job_.load() != seen; });
      }
      seen++;
      if (id < helpers_) take();
      left_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::mutex callers_, sleep_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
  std::atomic<unsigned> job_{0};
  std::atomic<int> next_{0}, left_{0};
  const std::function<void(int)>* task_ = nullptr;
  int count_ = 0, helpers_ = 0;
};

}  // namespace

int usable_cores() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  int cores = int(std::thread::hardware_concurrency());
  return cores > 0 ? cores : 1;
}

void parallel(int count, int threads, const std::function<void(int)>& task) {
  static Pool* pool = new Pool;  // never destroyed: its threads sleep until the process ends
  if (threads <= 0) threads = usable_cores();
  threads = threads < count ? threads : count;
  if (threads <= 1) {
    for (int i = 0; i < count; i++) task(i);
    return;
  }
  pool->run(count, threads, task);
}

}  // namespace gmoe

#include "pool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace gmoe {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto spin_time = std::chrono::microseconds(500);

class Pool {
 public:
  void run(int count, int threads, const std::function<void(int)>& task) {
    std::lock_guard<std::mutex> one_job(callers_);
    const uint32_t helpers = uint32_t(threads - 1);
    while (workers_.size() < helpers) {
      uint32_t id = uint32_t(workers_.size());
      workers_.emplace_back([this, id, seen = job_.load()] { work(id, seen); });
    }
    task_ = &task;
    count_ = count;
    next_.store(0, std::memory_order_relaxed);
    const uint64_t job = ((job_.load() >> 32) + 1) << 32 | helpers;
    open_.store(job);
    bool asleep;
    {
      std::lock_guard<std::mutex> lock(sleep_);
      job_.store(job);
      asleep = sleepers_ > 0;
    }
    if (asleep) wake_.notify_all();
    take();
    open_.store(0);  // every task is taken: a worker whose core is another program's is not waited for
    for (int spins = 0; inside_.load() > 0; spins++) relax(spins);
  }

 private:
  void take() {
    for (int i; (i = next_.fetch_add(1)) < count_;) (*task_)(i);
  }

  uint64_t next_job(uint64_t seen) {
    const auto end = Clock::now() + spin_time;
    for (int spins = 0; spins % 64 || Clock::now() < end; spins++) {
      uint64_t job = job_.load(std::memory_order_acquire);
      if (job != seen) return job;
      relax(spins);  // before long it lets go of the core: who brings the next job may wait for just that one
    }
    std::unique_lock<std::mutex> lock(sleep_);
    sleepers_++;
    wake_.wait(lock, [&] { return job_.load() != seen; });
    sleepers_--;
    return job_.load();
  }

  void work(uint32_t id, uint64_t seen) {
    for (;;) {
      seen = next_job(seen);
      if (id >= uint32_t(seen)) continue;
      inside_.fetch_add(1);  // before it looks: who closes the job looks at this afterwards
      if (open_.load() == seen) take();
      inside_.fetch_sub(1);
    }
  }

  std::mutex callers_, sleep_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
  int sleepers_ = 0;
  alignas(64) std::atomic<uint64_t> job_{0};  // its number, and below it how many workers it takes
  alignas(64) std::atomic<int> next_{0};
  alignas(64) std::atomic<uint64_t> open_{0};  // the job that workers may still begin to work at, or 0
  alignas(64) std::atomic<int> inside_{0};     // workers that are at a job, or look whether they may
  const std::function<void(int)>* task_ = nullptr;
  int count_ = 0;
};

// Never destroyed: its threads sleep until the process ends. A forked child has none of them and begins anew.
std::atomic<Pool*> the_pool{nullptr};

Pool& pool() {
  Pool* known = the_pool.load(std::memory_order_acquire);
  if (known) return *known;
#if defined(__unix__) || defined(__APPLE__)
  static const int registered = pthread_atfork(nullptr, nullptr, [] { the_pool.store(nullptr); });
  (void)registered;
#endif
  Pool* made = new Pool;
  if (the_pool.compare_exchange_strong(known, made)) return *made;
  delete made;
  return *known;
}

}  // namespace

void parallel(int count, int threads, const std::function<void(int)>& task) {
  if (threads <= 0) threads = usable_cores();
  threads = threads < count ? threads : count;
  if (threads <= 1) {
    for (int i = 0; i < count; i++) task(i);
    return;
  }
  pool().run(count, threads, task);
}

}  // namespace gmoe

// A SIGBUS inside a guarded map puts zeros there and a mark beside it; any other goes where it would have gone.
#include "guard.h"

#if defined(__unix__) || defined(__APPLE__)
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <mutex>

namespace gmoe {

namespace {

struct Guard {
  std::atomic<uintptr_t> begin{0}, end{0};  // begin 0: free
  std::atomic<bool> lost{false};
};

constexpr int most = 1024;
Guard guards[most];
std::mutex change;
struct sigaction before;
uintptr_t page_size = 0;

void on_bus_error(int signal, siginfo_t* info, void* context) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(info->si_addr);
  const int saved = errno;
  for (Guard& guard : guards) {
    const uintptr_t begin = guard.begin.load(), end = guard.end.load();
    if (!begin || at < begin || at >= end) continue;
    // what follows a page behind the end of a file is behind it too
    const uintptr_t page = at & ~(page_size - 1);
    guard.lost.store(true);
    const void* zeros = mmap(reinterpret_cast<void*>(page), end - page, PROT_READ,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    errno = saved;
    if (zeros != MAP_FAILED) return;
  }
  if (before.sa_flags & SA_SIGINFO) {
    before.sa_sigaction(signal, info, context);
  } else if (before.sa_handler == SIG_DFL || before.sa_handler == SIG_IGN) {
    sigaction(SIGBUS, &before, nullptr);  // the access is repeated, and ends the process
  } else {
    before.sa_handler(signal);
  }
}

}  // namespace

int guard(uintptr_t begin, size_t size) {
  const std::lock_guard<std::mutex> hold(change);
  if (!page_size) {
    page_size = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    struct sigaction mine {};
    mine.sa_sigaction = on_bus_error;
    mine.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    sigemptyset(&mine.sa_mask);
    sigaction(SIGBUS, &mine, &before);
  }
  for (int n = 0; n < most; ++n) {
    if (guards[n].begin.load()) continue;
    guards[n].lost.store(false);
    guards[n].end.store((begin + size + page_size - 1) / page_size * page_size);
    guards[n].begin.store(begin);
    return n;
  }
  return -1;
}

bool lost(int number) { return number >= 0 && number < most && guards[number].lost.load(); }

void unguard(int number) {
  if (number < 0 || number >= most) return;
  const std::lock_guard<std::mutex> hold(change);
  guards[number].begin.store(0);
}

}  // namespace gmoe

#else

namespace gmoe {

int guard(uintptr_t, size_t) { return -1; }
bool lost(int) { return false; }
void unguard(int) {}

}  // namespace gmoe

#endif

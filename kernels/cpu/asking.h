// Which lines are asked for ahead of what is read. A Zen 4's own prefetcher follows bytes in order better than asking
// does, unless a block takes so many instructions that the next loads wait behind them; but it stays within 4 KB, and
// would find each page only once its first lines have been waited for. A Zen 3 reads fastest what lies apart: four runs
// of rows at once (`rows_apart`). A Xeon wants both, and pages that are further away. Beyond the weights' end asking
// does nothing.
enum class Asking { pages, lines, both };

inline Asking asking() {
  static const Asking how = __builtin_cpu_is("intel")           ? Asking::both
                            : __builtin_cpu_supports("avx512f") ? Asking::pages
                                                                : Asking::lines;
  return how;
}

// What a step of SIZE bytes at `s` asks for: what is read 2 KB later, and one line, from its first on, of a later page.
template <Asking HOW, int SIZE>
inline __attribute__((always_inline)) void ask_ahead(const uint8_t* s) {
  constexpr _mm_hint near = HOW == Asking::both ? _MM_HINT_T0 : _MM_HINT_NTA;
  constexpr int pages = HOW == Asking::both ? 3 : 1;
#pragma GCC unroll 32
  for (int i = 0; i < SIZE && HOW != Asking::pages; i += 64) _mm_prefetch((const char*)s + 2048 + i, near);
  if (HOW == Asking::lines) return;
  const uintptr_t at = uintptr_t(s), line = (at & 4095) >> (SIZE < 1024 ? 3 : 4) & ~uintptr_t(63);
  _mm_prefetch((const char*)((at | 4095) + 1 + 4096 * (pages - 1) + line), _MM_HINT_T1);
}
// What a step of SIZE bytes at `s`, in one of four runs, asks for.
template <int SIZE>
inline __attribute__((always_inline)) void ask_in_run(const uint8_t* s) {
#pragma GCC unroll 32
  for (int i = 0; i < SIZE; i += 64) _mm_prefetch((const char*)s + 320 + i, _MM_HINT_T0);
}
// How many rows of each of four runs are read at once; 0: as they lie.
inline int rows_apart(const Job& job, int begin, int end) {
  const int rows = asking() == Asking::lines ? (end - begin) / 4 : 0;
  return rows * job.row_bytes < 4096 ? 0 : rows;  // a prefetcher follows one run in a page
}
// Ask for what a call reads first, while it prepares.
inline void ask_first(const uint8_t* s) {
  const bool close = asking() == Asking::both;
  for (int i = 0; i < 2048; i += 64)
    if (close) _mm_prefetch((const char*)s + i, _MM_HINT_T0);
    else _mm_prefetch((const char*)s + i, _MM_HINT_NTA);
}

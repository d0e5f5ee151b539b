// A buffer that is kept between calls, so that its pages are not asked for again.
#pragma once
#include <cstddef>
#include <new>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#endif

namespace gmoe {

class Memory {
 public:
  Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { release(); }

  // At least `bytes`, 64-byte aligned; what was there before is lost.
  char* of(size_t bytes) {
    if (bytes > size_ || (size_ >= large && bytes < large / 4)) {
      release();
      data_ = take(bytes);
      size_ = bytes;
    }
    return data_;
  }
  float* floats(size_t count) { return reinterpret_cast<float*>(of(count * sizeof(float))); }

 private:
  // Bytes that a prompt wants and one token does not: they come from the system, without holes, and go back once little
  // is asked for.
  static constexpr size_t large = 1 << 20;

  static char* take(size_t bytes) {
#if defined(__unix__) || defined(__APPLE__)
    if (bytes >= large) {
      void* taken = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (taken == MAP_FAILED) throw std::bad_alloc();
      return static_cast<char*>(taken);
    }
#endif
    return static_cast<char*>(::operator new(bytes, std::align_val_t(64)));
  }
  void release() {
    if (!data_) return;
#if defined(__unix__) || defined(__APPLE__)
    if (size_ >= large) munmap(data_, size_);
    else
#endif
      ::operator delete(data_, std::align_val_t(64));
    data_ = nullptr;
    size_ = 0;
  }
  char* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace gmoe

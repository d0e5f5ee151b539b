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
    little_ = size_ >= large && bytes < large / 4 ? little_ + 1 : 0;
    if (bytes > size_ || little_ == patience) {
      release();
      data_ = take(bytes);
      size_ = bytes;
    }
    return data_;
  }
  float* floats(size_t count) { return reinterpret_cast<float*>(of(count * sizeof(float))); }

 private:
  // Bytes that a prompt wants and one token does not: they come from the system, without holes, and go back once little
  // has been asked for so many times, which is more often than within a layer.
  static constexpr size_t large = 1 << 20;
  static constexpr int patience = 16;

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
    little_ = 0;
  }
  char* data_ = nullptr;
  size_t size_ = 0;
  int little_ = 0;  // times in a row that little was asked for
};

}  // namespace gmoe

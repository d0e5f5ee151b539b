// A buffer that is kept between calls, so that its pages are not asked for again.
#pragma once
#include <cstddef>
#include <new>

namespace gmoe {

class Memory {
 public:
  Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { release(); }

  // At least `bytes`, 64-byte aligned; what was there before is lost.
  char* of(size_t bytes) {
    if (bytes > size_ || size_ > 4 * bytes + kept) {
      release();
      data_ = static_cast<char*>(::operator new(bytes + 64, std::align_val_t(64)));
      size_ = bytes;
    }
    return data_;
  }
  float* floats(size_t count) { return reinterpret_cast<float*>(of(count * sizeof(float))); }

 private:
  static constexpr size_t kept = 8 << 20;  // a buffer that outgrew its use by more is given back
  void release() {
    if (data_) ::operator delete(data_, std::align_val_t(64));
    data_ = nullptr;
    size_ = 0;
  }
  char* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace gmoe

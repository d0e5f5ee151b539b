// A program without Python: LEVELS and STEP against the portable ones, bit for bit, and a hash of each format's and
// each function's results to compare between machines. Built by `tools/check_neon.py`; the argument is the file of
// grids that it writes; with another one behind it, it is the step alone that is checked.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <vector>

#include "check_step.h"
#include "experts.h"

namespace {

using namespace gmoe;

uint32_t state = 1;
uint32_t next() { return (state = state * 1664525u + 1013904223u) >> 8; }

// Random bytes; those that are plain numbers between -2 and 2.
std::vector<uint8_t> weights(const Format& format, size_t size) {
  std::vector<uint8_t> bytes(size);
  for (uint8_t& b : bytes) b = uint8_t(next());
  if (format.block > 1) return bytes;
  for (size_t i = 0; i < size; i += size_t(format.bytes)) bytes[i + format.bytes - 1] = uint8_t(0x3c + next() % 2);
  return bytes;
}

struct Lie {  // where a block's float16 scales lie; all are made small
  const char* name;
  int at[2];
};
const Lie lies[] = {
    {"Q4_0", {0, -1}}, {"Q4_1", {0, 2}}, {"Q5_0", {0, -1}}, {"Q5_1", {0, 2}},
    {"Q8_0", {0, -1}}, {"Q2_K", {80, 82}}, {"Q3_K", {108, -1}}, {"Q4_K", {0, 2}},
    {"Q5_K", {0, 2}}, {"Q6_K", {208, -1}}, {"IQ4_NL", {0, -1}}, {"IQ4_XS", {0, -1}},
    {"TQ1_0", {52, -1}}, {"TQ2_0", {64, -1}}, {"IQ1_S", {0, -1}}, {"IQ2_XXS", {0, -1}},
    {"IQ2_XS", {0, -1}}, {"IQ2_S", {0, -1}}, {"IQ3_XXS", {0, -1}}, {"IQ3_S", {0, -1}},
};

void tame(const Format& format, std::vector<uint8_t>& bytes) {
  for (size_t block = 0; block + format.bytes <= bytes.size(); block += size_t(format.bytes)) {
    if (!std::strcmp(format.name, "MXFP4")) bytes[block] = 120;
    if (!std::strcmp(format.name, "IQ1_M")) bytes[block + 55] = uint8_t((bytes[block + 55] & 15) | 0x20);
    for (const Lie& lie : lies)
      if (!std::strcmp(format.name, lie.name))
        for (int at : lie.at)
          if (at >= 0) bytes[block + size_t(at) + 1] = uint8_t(0x20 + (bytes[block + size_t(at) + 1] & 3));
  }
}

// The same bytes right before a page that must not be touched.
class Guarded {
 public:
  explicit Guarded(const std::vector<uint8_t>& bytes) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE)), whole = (bytes.size() + page - 1) / page * page;
    size_ = whole + page;
    memory_ = static_cast<uint8_t*>(mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(memory_ + whole, page, PROT_NONE);
    begin_ = memory_ + whole - bytes.size();
    std::memcpy(begin_, bytes.data(), bytes.size());
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() { munmap(memory_, size_); }
  const uint8_t* data() const { return begin_; }

 private:
  size_t size_;
  uint8_t *memory_, *begin_;
};

}  // namespace

int main(int count, char** arguments) {
  if (count == 3 && STEP.here()) return StepCheck(STEP, next).run() ? 1 : 0;
  if (count != 2) return 2;
  std::ifstream file(arguments[1], std::ios::binary);
  std::vector<char> data((std::istreambuf_iterator<char>(file)), {});
  const uint8_t** tables[] = {&grids.iq1,   &grids.iq2_xxs, &grids.iq2_xs, &grids.iq2_s,
                              &grids.iq3_xxs, &grids.iq3_s,   &grids.signs};
  size_t at = 0;
  for (const uint8_t** table : tables) {
    uint32_t size;
    std::memcpy(&size, data.data() + at, 4);
    *table = reinterpret_cast<const uint8_t*>(data.data() + at + 4);
    at += 4 + size;
  }
  for (int byte = 0; byte < 256; byte++)
    for (int bit = 0; bit < 8; bit++) sign_masks[byte][bit] = byte >> bit & 1 ? 255 : 0;
  int wrong = 0;
  const Level* const levels[] = {LEVELS};
  for (const Level* level : levels)
    if (!level->here() || !STEP.here()) return std::printf("this CPU has not %s\n", level->name), 3;
  for (int f = 0; f < portable.count; f++) {
    const Format& plain = portable.formats[f];
    uint32_t hash = 2166136261u;
    for (int cols : {512, plain.block == 256 ? 768 : plain.block == 64 ? 320 : 352})
      for (int tokens : {1, 3, 41}) {
        const int rows = tokens == 3 ? 16 : 19;  // a whole strip, and one with rows behind it
        const size_t row_bytes = size_t(cols / plain.block) * size_t(plain.bytes);
        std::vector<uint8_t> bytes = weights(plain, rows * row_bytes);
        tame(plain, bytes);
        const Guarded w(bytes);
        std::vector<float> x(size_t(tokens) * size_t(cols)), a(size_t(tokens) * rows), b(a.size());
        for (float& value : x) value = (float(next() & 0xffff) - 32768.0f) / 8192.0f;
        const Product one = {&plain, w.data(), row_bytes, rows, nullptr, a.data()};
        matmul(portable, &one, 1, cols, x.data(), tokens, 1);
        for (const Level* level : levels) {
          const Product other = {&level->formats[f], w.data(), row_bytes, rows, nullptr, b.data()};
          matmul(*level, &other, 1, cols, x.data(), tokens, 2);
          if (std::memcmp(a.data(), b.data(), a.size() * 4))
            wrong++, std::printf("%s, %s differs: %d x %d\n", plain.name, level->name, tokens, cols);
        }
        std::vector<float> gate(a);
        for (Curve curve : {Curve::swiglu, Curve::geglu, Curve::reglu, Curve::swiglu_oai, Curve::swiglu_within,
                            Curve::swiglu_under, Curve::situ}) {
          const Gate kind = {curve, 7.0f, 5.0f};
          portable.gate(kind, gate.data(), a.data(), int(a.size()));
          levels[0]->gate(kind, gate.data(), b.data(), int(b.size()));
          if (std::memcmp(a.data(), b.data(), a.size() * 4)) wrong++, std::printf("activations differ\n");
        }
        for (float value : a) {
          uint32_t bits;
          std::memcpy(&bits, &value, 4);
          if (!(value - value == 0.0f)) wrong++, std::printf("not finite\n");
          hash = (hash ^ bits) * 16777619u;
        }
      }
    std::printf("%s %08x\n", plain.name, hash);
  }
  wrong += StepCheck(STEP, next).run();
  return wrong ? 1 : 0;
}

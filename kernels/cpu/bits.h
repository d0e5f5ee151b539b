// Loads and number formats. Included by each level's source inside its own namespace, as all that follow, so that no
// code is shared between instruction sets.

template <class T>
inline T load(const void* p) {
  T value;
  __builtin_memcpy(&value, p, sizeof value);
  return value;
}

typedef uint64_t EightWords __attribute__((vector_size(64), aligned(1)));

// The sum of some bytes' words: the least that a product could do. Of four runs, `apart` bytes from each other,
// 64 bytes are read at a time: of 64 bytes, so that all are read as they lie, or of a quarter. ask(p) comes before.
template <class Ask>
inline uint64_t read_words(const uint8_t* p, size_t size, size_t apart, Ask ask) {
  const uint8_t *const end = p + size, *left = p + size / 256 * 256;
  EightWords a = {}, b = {}, c = {}, d = {};
  const size_t step = apart == 64 ? 256 : 64;
  for (size_t n = size / 256; n; n--, p += step) {
    ask(p);
    a += *reinterpret_cast<const EightWords*>(p);
    b += *reinterpret_cast<const EightWords*>(p + apart);
    c += *reinterpret_cast<const EightWords*>(p + 2 * apart);
    d += *reinterpret_cast<const EightWords*>(p + 3 * apart);
  }
  a += b + c + d;
  uint64_t sum = 0;
  for (int k = 0; k < 8; k++) sum += a[k];
  for (; left < end; left++) sum += *left;
  return sum;
}

inline float as_float(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

inline uint32_t bits_of(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits;
}

inline float half(uint16_t h) {
#if defined(AVX512_LEVEL) || defined(AVX256_LEVEL)
  return _cvtsh_ss(h);
#elif defined(__aarch64__)
  __fp16 x;
  __builtin_memcpy(&x, &h, 2);
  return x;
#else
  uint32_t sign = uint32_t(h & 0x8000) << 16, rest = h & 0x7fff;
  if (rest >= 0x7c00) return as_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  if (rest >= 0x400) return as_float(sign | ((rest << 13) + 0x38000000));
  float small = float(rest) * 0x1p-24f;
  return sign ? -small : small;
#endif
}

inline float half(const uint8_t* p) { return half(load<uint16_t>(p)); }

// The four bits of exponent and the three behind them are those of a float16, 2^7 times too small.
inline float ue4m3(uint8_t e) { return e == 127 ? 0.0f : half(uint16_t((e & 127) << 7)) * 128.0f; }

inline float e8m0(uint8_t e) { return as_float(e < 2 ? 0x00200000u << e : uint32_t(e - 1) << 23); }

alignas(16) constexpr uint8_t iq4_values[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                                129, 141, 153, 166, 181, 197, 217, 241};  // + 128
alignas(16) constexpr uint8_t fp4_values[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};  // + 12

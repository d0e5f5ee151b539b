// Rows of quantized weights as floats, bit for bit as gguf-py gives them: what an embedding reads.
#include "values.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "block.h"
#include "pool.h"

namespace gmoe {
namespace {

#include "bits.h"
#include "unpack.h"

using Values = void (*)(const uint8_t* row, int cols, float* out);

template <class F>
void values(const uint8_t* row, int cols, float* out) {
  for (int n = 0; n < cols / F::block; n++, row += F::bytes, out += F::block) {
    if constexpr (F::wide) {
      Codes c = {};
      F::unpack(row, c);
      for (int g = 0; g < 16; g++) {
        const float scale = c.d[0] * float(c.scale[g]), low = c.m[0] * float(c.low[g]);
        for (int i = 16 * g; i < 16 * g + 16; i++) {
          const float value = scale * float(int(c.q[i]) - F::bias);
          out[i] = F::lows ? value - low : value;
        }
      }
    } else if constexpr (!F::pairs) {
      uint8_t q[F::block];
      float d[F::block / 16];
      F::unpack(row, q, d);
      for (int i = 0; i < F::block; i++) out[i] = d[i / 16] * float(int(q[i]) - F::bias);
    } else {
      uint8_t q[32];
      float d = 0.0f, m = 0.0f;
      F::unpack(row, q, d, m);
      for (int i = 0; i < 32; i++) {
        const float value = d * float(int(q[i]) - F::bias);
        out[i] = F::lows ? value + m : value;
      }
    }
  }
}

template <class T, class Read>
void numbers(const uint8_t* row, int cols, float* out, const Read& read) {
  for (int i = 0; i < cols; i++) out[i] = read(load<T>(row + size_t(i) * sizeof(T)));
}

void floats(const uint8_t* row, int cols, float* out) {
  numbers<float>(row, cols, out, [](float x) { return x; });
}

void halves(const uint8_t* row, int cols, float* out) {
  numbers<uint16_t>(row, cols, out, [](uint16_t x) { return half(x); });
}

void bfloats(const uint8_t* row, int cols, float* out) {
  numbers<uint16_t>(row, cols, out, [](uint16_t x) { return as_float(uint32_t(x) << 16); });
}

Values values_of(const std::string& name) {
  if (name == "F32") return floats;
  if (name == "F16") return halves;
  if (name == "BF16") return bfloats;
  if (name == "Q4_0") return values<Q4_0>;
  if (name == "Q4_1") return values<Q4_1>;
  if (name == "Q5_0") return values<Q5_0>;
  if (name == "Q5_1") return values<Q5_1>;
  if (name == "Q8_0") return values<Q8_0>;
  if (name == "Q2_K") return values<Q2_K>;
  if (name == "Q3_K") return values<Q3_K>;
  if (name == "Q4_K") return values<Q4_K>;
  if (name == "Q5_K") return values<Q5_K>;
  if (name == "Q6_K") return values<Q6_K>;
  if (name == "IQ4_NL") return values<IQ4_NL>;
  if (name == "IQ4_XS") return values<IQ4_XS>;
  if (name == "MXFP4") return values<MXFP4>;
  if (name == "NVFP4") return values<NVFP4>;
  if (name == "TQ1_0") return values<TQ1_0>;
  if (name == "TQ2_0") return values<TQ2_0>;
  if (name == "IQ1_S") return values<IQ1_S>;
  if (name == "IQ1_M") return values<IQ1_M>;
  if (name == "IQ2_XXS") return values<IQ2_XXS>;
  if (name == "IQ2_XS") return values<IQ2_XS>;
  if (name == "IQ2_S") return values<IQ2_S>;
  if (name == "IQ3_XXS") return values<IQ3_XXS>;
  if (name == "IQ3_S") return values<IQ3_S>;
  return nullptr;
}

}  // namespace

bool has_values(const std::string& format) { return values_of(format) != nullptr; }

void rows_of(const std::string& format, const uint8_t* weights, size_t row_bytes, int rows, int cols,
             const int64_t* ids, int count, float* out, int threads) {
  if (std::any_of(ids, ids + count, [&](int64_t id) { return id < 0 || id >= rows; }))
    throw std::invalid_argument("ids must be contiguous int64 of " + std::to_string(rows) + " rows");
  const Values values = values_of(format);
  parallel(count, count < 4 ? 1 : threads,
           [&](int i) { values(weights + size_t(ids[i]) * row_bytes, cols, out + size_t(i) * cols); });
}

}  // namespace gmoe

// Rows of quantized weights as floats.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace gmoe {

bool has_values(const std::string& format);

// Rows ids [count] of a matrix [rows][cols] -> out [count][cols]; the format is one that has values.
void rows_of(const std::string& format, const uint8_t* weights, size_t row_bytes, int rows, int cols,
             const int64_t* ids, int count, float* out, int threads);

}  // namespace gmoe

#pragma once

#include <cstdint>

namespace mnmt {

// Rows are prepared in blocks of up to kPairColumns columns, padded with zeros to a multiple of kPairPadding. A padded
// column is the same in all rows and adds nothing to any sum.
constexpr std::int64_t kPairColumns = 1024;
constexpr std::int64_t kPairPadding = 16;

struct PairKernels {
  float (*maximum)(const float* x, std::int64_t n);  // 0 if n is 0
  // scaled = scale x; logs = log(x + eps) as simd_log.h has it.
  void (*prepare)(const float* x, std::int64_t n, float scale, float eps, float* scaled, std::int32_t* logs);
  // For i, j in {0, 1} and k = 2 i + j, with d the logarithms of b_j less those of a_i: squares[k] = sum (a_i - b_j)^2,
  // weighted[k] = {sum b_j d, -sum a_i d}. n is a multiple of kPairPadding.
  void (*tile)(const float* const a[2], const std::int32_t* const a_logs[2], const float* const b[2],
               const std::int32_t* const b_logs[2], std::int64_t n, float squares[4], float weighted[4][2]);
  float log_unit;
};

}  // namespace mnmt

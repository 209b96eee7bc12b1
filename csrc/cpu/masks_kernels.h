#pragma once

#include <cstdint>

namespace mnmt {

struct MaskKernels {
  // ceil(n / 64) words.
  void (*pack)(const float* x, std::int64_t n, float threshold, std::uint64_t* words);
  // counts[2 i + j] = bits that a[i] and b[j] share, i and j in {0, 1}.
  void (*shared_bits)(const std::uint64_t* const a[2], const std::uint64_t* const b[2], std::int64_t words,
                      std::int64_t counts[4]);
};

}  // namespace mnmt

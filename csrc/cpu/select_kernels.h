#pragma once

#include <cstdint>

namespace mnmt {

struct SelectKernels {
  // counts[bin] = number of elements with that radix digit, by plain bit patterns: the sign bit leads, nothing is
  // flipped. `prefix` (levels 1 and 2) is a pattern's top bits. n < 2^32.
  void (*histogram)(const float* x, std::int64_t n, int level, std::uint32_t prefix, std::uint32_t* counts);
  // Adds to counts[4] the numbers > high, >= high, > low, >= low; writes the elements strictly between to out, which
  // has room for n + 16, and returns their number. *all_finite turns false if an element is not.
  std::int64_t (*between)(const float* x, std::int64_t n, float low, float high, float* out, std::int64_t* counts,
                          bool* all_finite);
};

}  // namespace mnmt

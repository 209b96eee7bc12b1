// How fast this machine reads, and reads, modifies and writes, memory: the yardsticks of the kernels over parameters.
#pragma once

#include <cstdint>

namespace mnmt {

// Sum of n floats; reads 4 n bytes and does nothing else worth time.
double read_stream(const float* data, std::int64_t n, int threads);

}  // namespace mnmt

#pragma once

#include <cstdint>

namespace mnmt {

struct BandwidthKernels {
  float (*sum)(const float* data, std::int64_t n);
};

}  // namespace mnmt

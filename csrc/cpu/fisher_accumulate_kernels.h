#pragma once

#include <cstdint>

#include "mnmt/types.h"

namespace mnmt {

struct FisherKernels {
  // fisher[0 .. n) += scale * gradient^2
  void (*accumulate)(float* fisher, const void* gradient, Dtype dtype, float scale, std::int64_t n);
};

}  // namespace mnmt

// The diagonal of the empirical Fisher matrix, accumulated in place over a list of fragments.
#pragma once

#include <cstdint>
#include <vector>

#include "mnmt/types.h"

namespace mnmt {

struct FisherAccumulate {
  Dtype dtype;                         // of the gradients
  std::vector<std::int64_t> sizes;     // [F] elements of each fragment
  std::vector<float*> fisher;          // [F]
  std::vector<const void*> gradients;  // [F]
  float scale;
};

// F += (g * g) * scale, elementwise in fp32: two roundings where the processor has fma, three elsewhere.
void fisher_accumulate(const FisherAccumulate& problem, int threads);

}  // namespace mnmt

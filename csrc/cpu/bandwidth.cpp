#include "mnmt/bandwidth.h"

#include <algorithm>
#include <vector>

#include "cpu/bandwidth_kernels.h"
#include "mnmt/isa.h"
#include "mnmt/parallel.h"

namespace mnmt {

MNMT_PER_ISA(BandwidthKernels, bandwidth_kernels)

double read_stream(const float* data, std::int64_t n, int threads) {
  constexpr std::int64_t kItem = 1 << 18;
  const std::int64_t items = (n + kItem - 1) / kItem;
  std::vector<double> sums(items);
  const auto& kernels = bandwidth_kernels_per_isa.active();
  parallel_for(items, threads,
               [&](std::int64_t i) { sums[i] = kernels.sum(data + i * kItem, std::min(kItem, n - i * kItem)); });
  return tree_sum(0, items, [&](std::int64_t i) { return sums[i]; });
}

}  // namespace mnmt

#include "cpu/bandwidth_kernels.h"
#include "cpu/simd.h"

namespace mnmt {
namespace MNMT_ISA {
namespace {

float sum(const float* data, std::int64_t n) {
  F32 a = zero(), b = zero(), c = zero(), d = zero();
  std::int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    a = add(a, load(data + i));
    b = add(b, load(data + i + kLanes));
    c = add(c, load(data + i + 2 * kLanes));
    d = add(d, load(data + i + 3 * kLanes));
  }
  for (; i + kLanes <= n; i += kLanes) a = add(a, load(data + i));
  if (i < n) b = add(b, load_some(data + i, static_cast<int>(n - i)));
  return reduce_add(add(add(a, b), add(c, d)));
}

}  // namespace

extern const BandwidthKernels bandwidth_kernels;
const BandwidthKernels bandwidth_kernels{sum};

}  // namespace MNMT_ISA
}  // namespace mnmt

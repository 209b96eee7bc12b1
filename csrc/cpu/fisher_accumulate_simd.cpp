#include "cpu/fisher_accumulate_kernels.h"
#include "cpu/simd.h"

namespace mnmt {
namespace MNMT_ISA {
namespace {

MNMT_INLINE F32 added(F32 fisher, F32 gradient, F32 scale) { return fma(mul(gradient, gradient), scale, fisher); }

template <class T>
void accumulate_of(float* fisher, const T* gradient, float scale, std::int64_t n) {
  const F32 s = set1(scale);
  std::int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    store(fisher + i, added(load(fisher + i), load(gradient + i), s));
    store(fisher + i + kLanes, added(load(fisher + i + kLanes), load(gradient + i + kLanes), s));
  }
  for (; i < n; i += kLanes) {
    const int some = static_cast<int>(n - i < kLanes ? n - i : kLanes);
    store_some(fisher + i, added(load_some(fisher + i, some), load_some(gradient + i, some), s), some);
  }
}

void accumulate(float* fisher, const void* gradient, Dtype dtype, float scale, std::int64_t n) {
  switch (dtype) {
    case Dtype::f32: return accumulate_of(fisher, static_cast<const float*>(gradient), scale, n);
    case Dtype::bf16: return accumulate_of(fisher, static_cast<const bf16*>(gradient), scale, n);
    case Dtype::f16: return accumulate_of(fisher, static_cast<const f16*>(gradient), scale, n);
  }
}

}  // namespace

extern const FisherKernels fisher_kernels;
const FisherKernels fisher_kernels{accumulate};

}  // namespace MNMT_ISA
}  // namespace mnmt

#include "cpu/pair_sums_kernels.h"
#include "cpu/simd.h"
#include "cpu/simd_log.h"

namespace mnmt {
namespace MNMT_ISA {
namespace {

float maximum(const float* x, std::int64_t n) {
  F32 m = zero();
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) m = max(m, load(x + i));
  if (i < n) m = max(m, load_some(x + i, static_cast<int>(n - i)));
  return reduce_max(m);
}

void prepare(const float* x, std::int64_t n, float scale, float eps, float* scaled, std::int32_t* logs) {
  const F32 s = set1(scale), e = set1(eps);
  const std::int64_t padded = (n + kPairPadding - 1) / kPairPadding * kPairPadding;
  for (std::int64_t i = 0; i < padded; i += kLanes) {
    const std::int64_t left = n - i;
    const F32 v = left >= kLanes ? load(x + i) : left > 0 ? load_some(x + i, static_cast<int>(left)) : zero();
    store(scaled + i, mul(v, s));
    store(logs + i, log_fixed(add(v, e)));
  }
}

// One pair's three sums.
struct Sums {
  F32 squares, forward, backward;
};
MNMT_INLINE void accumulate(Sums& sums, F32 a, I32 a_log, F32 b, I32 b_log) {
  const F32 difference = sub(a, b), log_difference = to_float(sub(b_log, a_log));
  sums.squares = fma(difference, difference, sums.squares);
  sums.forward = fma(b, log_difference, sums.forward);
  sums.backward = fma(a, log_difference, sums.backward);
}

void tile(const float* const a[2], const std::int32_t* const a_logs[2], const float* const b[2],
          const std::int32_t* const b_logs[2], std::int64_t n, float squares[4], float weighted[4][2]) {
  Sums s00{zero(), zero(), zero()}, s01 = s00, s10 = s00, s11 = s00;
  for (std::int64_t i = 0; i < n; i += kLanes) {
    const F32 a0 = load(a[0] + i), a1 = load(a[1] + i), b0 = load(b[0] + i), b1 = load(b[1] + i);
    const I32 a0_log = load(a_logs[0] + i), a1_log = load(a_logs[1] + i);
    const I32 b0_log = load(b_logs[0] + i), b1_log = load(b_logs[1] + i);
    accumulate(s00, a0, a0_log, b0, b0_log);
    accumulate(s01, a0, a0_log, b1, b1_log);
    accumulate(s10, a1, a1_log, b0, b0_log);
    accumulate(s11, a1, a1_log, b1, b1_log);
  }
  const Sums all[4] = {s00, s01, s10, s11};
  for (int k = 0; k < 4; ++k) {
    squares[k] = reduce_add(all[k].squares);
    weighted[k][0] = reduce_add(all[k].forward);
    weighted[k][1] = -reduce_add(all[k].backward);
  }
}

}  // namespace

extern const PairKernels pair_kernels;
const PairKernels pair_kernels{maximum, prepare, tile, kLogUnit};

}  // namespace MNMT_ISA
}  // namespace mnmt

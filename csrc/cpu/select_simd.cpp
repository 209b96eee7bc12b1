#include "cpu/select_kernels.h"
#include "cpu/simd.h"
#include "cpu/simd_mask.h"

namespace mnmt {
namespace MNMT_ISA {
namespace {

constexpr int kBins = 2048;

// An increment waits for the one before it to the same address, so neighbours (often equal) go to different copies. The
// copies are not 4096 bytes apart or a multiple of it, since loads and stores that far apart wait for each other too.
constexpr int kCopies = 8;
constexpr int kStride = kBins + 80;
using Counts = std::uint32_t[kCopies][kStride];

// Long enough that most of it has left the store queue, with its overlapping stores, when it is read back.
constexpr int kBuffer = 8192;

template <int shift, std::uint32_t mask>
MNMT_INLINE void count(const float* x, std::int64_t n, Counts& counts) {
  std::int64_t i = 0;
  for (; i + kCopies <= n; i += kCopies) {
    std::uint64_t pair[kCopies / 2];
    std::memcpy(pair, x + i, sizeof pair);
    for (int c = 0; c < kCopies / 2; ++c) {
      ++counts[2 * c][static_cast<std::uint32_t>(pair[c]) >> shift & mask];
      ++counts[2 * c + 1][pair[c] >> (32 + shift) & mask];
    }
  }
  for (; i < n; ++i) {
    std::uint32_t u;
    std::memcpy(&u, x + i, 4);
    ++counts[0][u >> shift & mask];
  }
}

// Elements with the prefix are picked out first: the branch that would skip the others is a coin toss.
template <int shift, std::uint32_t mask, int prefix_shift>
MNMT_INLINE void count_with_prefix(const float* x, std::int64_t n, std::uint32_t prefix, Counts& counts) {
  float picked[kBuffer + kLanes];
  for (std::int64_t start = 0; start < n; start += kBuffer) {
    const std::int64_t stop = n - start < kBuffer ? n : start + kBuffer;
    std::int64_t size = 0, i = start;
    for (; i + kLanes <= stop; i += kLanes) {
      const F32 v = load(x + i);
      const std::uint32_t bits = has_prefix(v, prefix_shift, prefix);
      pick(picked + size, v, bits);
      size += popcount(bits);
    }
    for (; i < stop; ++i) {
      std::uint32_t u;
      std::memcpy(&u, x + i, 4);
      picked[size] = x[i];
      size += u >> prefix_shift == prefix;
    }
    count<shift, mask>(picked, size, counts);
  }
}

void histogram(const float* x, std::int64_t n, int level, std::uint32_t prefix, std::uint32_t* out) {
  Counts counts = {};
  if (level == 0)
    count<21, 2047>(x, n, counts);
  else if (level == 1)
    count_with_prefix<10, 2047, 21>(x, n, prefix, counts);
  else
    count_with_prefix<0, 1023, 10>(x, n, prefix, counts);
  for (int b = 0; b < kBins; ++b) {
    out[b] = 0;
    for (int c = 0; c < kCopies; ++c) out[b] += counts[c][b];
  }
}

std::int64_t between(const float* x, std::int64_t n, float low, float high, float* out, std::int64_t* counts,
                     bool* all_finite) {
  constexpr int kWord = 64;
  const F32 low_v = set1(low), high_v = set1(high);
  F32 not_finite = zero();  // x - x is 0, or NaN and stays it
  std::int64_t size = 0, i = 0;
  for (; i + kWord <= n; i += kWord) {
    std::uint64_t above_high = 0, from_high = 0, above_low = 0, from_low = 0;
    for (int j = 0; j < kWord; j += kLanes) {
      const F32 v = load(x + i + j);
      const std::uint32_t lower = greater(v, low_v), upper = greater_equal(v, high_v);
      above_high |= static_cast<std::uint64_t>(greater(v, high_v)) << j;
      from_high |= static_cast<std::uint64_t>(upper) << j;
      above_low |= static_cast<std::uint64_t>(lower) << j;
      from_low |= static_cast<std::uint64_t>(greater_equal(v, low_v)) << j;
      pick(out + size, v, lower & ~upper);
      size += popcount(lower & ~upper);
      not_finite = add(not_finite, sub(v, v));
    }
    counts[0] += popcount(above_high);
    counts[1] += popcount(from_high);
    counts[2] += popcount(above_low);
    counts[3] += popcount(from_low);
  }
  float rest = reduce_add(not_finite);
  for (; i < n; ++i) {
    counts[0] += x[i] > high;
    counts[1] += x[i] >= high;
    counts[2] += x[i] > low;
    counts[3] += x[i] >= low;
    out[size] = x[i];
    size += x[i] > low && x[i] < high;
    rest += x[i] - x[i];
  }
  if (rest != 0.0f) *all_finite = false;
  return size;
}

}  // namespace

extern const SelectKernels select_kernels;
const SelectKernels select_kernels{histogram, between};

}  // namespace MNMT_ISA
}  // namespace mnmt

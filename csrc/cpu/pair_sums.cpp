#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/pair_sums_kernels.h"
#include "cpu/row_pairs.h"
#include "mnmt/fisher_similarity.h"
#include "mnmt/isa.h"
#include "mnmt/parallel.h"

namespace mnmt {

MNMT_PER_ISA(PairKernels, pair_kernels)

namespace {

// A block of a row as the inner loops want it: aligned, and not a power of two long, which would put all rows into the
// same cache sets.
struct alignas(64) PreparedRow {
  float scaled[kPairColumns + kPairPadding];
  std::int32_t logs[kPairColumns + kPairPadding];
};
using Prepared = std::vector<PreparedRow>;

// Scales by a power of two, so that the block's largest value is in [1, 2): Fisher informations are squares of small
// numbers, and their own squares may be below what fp32 holds. Returns the exponent.
int prepare(const PairKernels& kernels, const float* values, std::int64_t rows, std::int64_t stride, std::int64_t n,
            float eps, Prepared& to) {
  float largest = 0.0f;
  for (std::int64_t r = 0; r < rows; ++r) largest = std::max(largest, kernels.maximum(values + r * stride, n));
  const int exponent = largest > 0.0f ? std::clamp(-std::ilogb(largest), -126, 126) : 0;
  const float scale = std::ldexp(1.0f, exponent);
  for (std::int64_t r = 0; r < rows; ++r) kernels.prepare(values + r * stride, n, scale, eps, to[r].scaled, to[r].logs);
  return exponent;
}

// A run's sums in fp64: [rows, rows] each, squares above the diagonal only.
struct RunSums {
  std::vector<double> mse, kl;
};

void add_block(const PairKernels& kernels, const Prepared& block, std::int64_t rows, std::int64_t n, int exponent,
               RunSums& sums) {
  const std::int64_t padded = (n + kPairPadding - 1) / kPairPadding * kPairPadding;
  const double square_unit = std::ldexp(1.0, -2 * exponent);
  const double kl_unit = std::ldexp(static_cast<double>(kernels.log_unit), -exponent);
  const auto value = [&](std::int64_t r) { return block[clamped(r, rows)].scaled; };
  const auto log = [&](std::int64_t r) { return block[clamped(r, rows)].logs; };
  for_tiles(rows, [&](std::int64_t i, std::int64_t j) {
    const float *a[2] = {value(i), value(i + 1)}, *b[2] = {value(j), value(j + 1)};
    const std::int32_t *a_logs[2] = {log(i), log(i + 1)}, *b_logs[2] = {log(j), log(j + 1)};
    float squares[4], weighted[4][2];
    kernels.tile(a, a_logs, b, b_logs, padded, squares, weighted);
    for_pairs(i, j, rows, [&](std::int64_t s, std::int64_t t, std::int64_t k) {
      if (s == t) return;
      sums.mse[s * rows + t] += square_unit * squares[k];
      sums.kl[s * rows + t] += kl_unit * weighted[k][0];
      sums.kl[t * rows + s] += kl_unit * weighted[k][1];
    });
  });
}

}  // namespace

void pair_sums(const float* values, std::int64_t rows, std::int64_t n, float eps, double* mse, double* kl,
               int threads) {
  const auto& kernels = pair_kernels_per_isa.active();
  const std::int64_t blocks = (n + kPairColumns - 1) / kPairColumns, runs = runs_of(blocks, rows);
  std::vector<RunSums> sums(runs);
  parallel_for(runs, threads, [&](std::int64_t run) {
    RunSums& mine = sums[run];
    mine.mse.assign(rows * rows, 0.0);
    mine.kl.assign(rows * rows, 0.0);
    Prepared block(rows);
    for_blocks(run, runs, blocks, [&](std::int64_t b) {
      const std::int64_t start = b * kPairColumns, length = std::min(kPairColumns, n - start);
      const int exponent = prepare(kernels, values + start, rows, n, length, eps, block);
      add_block(kernels, block, rows, length, exponent, mine);
    });
  });
  for (std::int64_t s = 0; s < rows; ++s)
    for (std::int64_t t = 0; t < rows; ++t) {
      const std::int64_t upper = std::min(s, t) * rows + std::max(s, t);
      mse[s * rows + t] += tree_sum(0, runs, [&](std::int64_t run) { return sums[run].mse[upper]; });
      kl[s * rows + t] += tree_sum(0, runs, [&](std::int64_t run) { return sums[run].kl[s * rows + t]; });
    }
}

}  // namespace mnmt

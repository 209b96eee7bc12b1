#include <algorithm>
#include <vector>

#include "cpu/masks_kernels.h"
#include "cpu/row_pairs.h"
#include "mnmt/fisher_similarity.h"
#include "mnmt/isa.h"
#include "mnmt/parallel.h"

namespace mnmt {

MNMT_PER_ISA(MaskKernels, mask_kernels)

void pack_masks(const float* values, std::int64_t rows, std::int64_t n, const float* thresholds, std::uint64_t* masks,
                int threads) {
  constexpr std::int64_t kItem = 1 << 16;  // a multiple of 64
  const auto& kernels = mask_kernels_per_isa.active();
  const std::int64_t items = (n + kItem - 1) / kItem, words = (n + 63) / 64;
  parallel_for(rows * items, threads, [&](std::int64_t item) {
    const std::int64_t row = item / items, start = item % items * kItem;
    kernels.pack(values + row * n + start, std::min(kItem, n - start), thresholds[row],
                 masks + row * words + start / 64);
  });
}

void mask_overlap(const std::uint64_t* masks, std::int64_t rows, std::int64_t words, std::int64_t* counts,
                  int threads) {
  constexpr std::int64_t kBlock = 512;  // words: a tile's four rows stay in L1, a hundred rows in L2
  const auto& kernels = mask_kernels_per_isa.active();
  const std::int64_t blocks = (words + kBlock - 1) / kBlock, runs = runs_of(blocks, rows);
  parallel_for(runs, threads, [&](std::int64_t run) {
    std::vector<std::int64_t> sums(rows * rows);
    for_blocks(run, runs, blocks, [&](std::int64_t b) {
      const std::int64_t start = b * kBlock, length = std::min(kBlock, words - start);
      const auto row = [&](std::int64_t r) { return masks + clamped(r, rows) * words + start; };
      for_tiles(rows, [&](std::int64_t i, std::int64_t j) {
        const std::uint64_t *left[2] = {row(i), row(i + 1)}, *right[2] = {row(j), row(j + 1)};
        std::int64_t tile[4];
        kernels.shared_bits(left, right, length, tile);
        for_pairs(i, j, rows, [&](std::int64_t s, std::int64_t t, std::int64_t k) { sums[s * rows + t] += tile[k]; });
      });
    });
    for (std::int64_t s = 0; s < rows; ++s)
      for (std::int64_t t = 0; t < rows; ++t) {
        const std::int64_t sum = sums[std::min(s, t) * rows + std::max(s, t)];
#pragma omp atomic
        counts[s * rows + t] += sum;
      }
  });
}

}  // namespace mnmt

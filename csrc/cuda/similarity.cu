#include "cuda/similarity.cuh"

#include <algorithm>

#include "cuda/pair_sums.cuh"
#include "mnmt/cuda.h"

namespace mnmt {
namespace cuda {
namespace {

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

int multiprocessors() {
#if defined(__CUDACC__)
  int device = 0, count = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  return count;
#else
  return 3;  // emulated: as good as any
#endif
}

}  // namespace

void radix_histogram(const float* values, std::int64_t rows, std::int64_t n, const std::int64_t* prefix, int level,
                     std::int64_t* histogram, void* stream) {
  if (rows == 0 || n == 0) return;
  // As many blocks as run at once, or up to 16 times as many where each still has 16 steps: a block beyond a multiple
  // of what runs at once would keep all others waiting, so the last of them should be short.
  constexpr std::int64_t kStep = 4 * kThreads * kWidth<float>, kWaves = 16, kSteps = 16;
  const std::int64_t at_once = kHistogramBlocksPerProcessor * multiprocessors();
  const std::int64_t least = divide_up(at_once, rows), most = divide_up(n + kWidth<float> - 1, kStep);
  const std::int64_t short_ones = std::min(divide_up(kWaves * at_once, rows), n / (kSteps * kStep));
  const std::int64_t blocks = std::min(most, std::max(least, short_ones));
  auto* kernel = level == 0 ? &radix_kernel<0> : level == 1 ? &radix_kernel<1> : &radix_kernel<2>;
  launch("radix_histogram", kernel, rows * blocks, stream, values, n, prefix, blocks, histogram);
}

void pack_masks(const float* values, std::int64_t rows, std::int64_t n, const float* thresholds, std::int64_t* masks,
                void* stream) {
  const std::int64_t chunks = divide_up(n, kMaskChunk);
  launch("pack_masks", &pack_kernel<std::uint32_t>, rows * chunks, stream, values, n, chunks, thresholds,
         reinterpret_cast<std::uint32_t*>(masks));
}

void mask_overlap(const std::int64_t* masks, std::int64_t rows, std::int64_t words, std::int64_t* counts,
                  void* stream) {
  const std::int64_t side = divide_up(rows, kOverlapTile), tiles = side * (side + 1) / 2;
  launch("mask_overlap", &overlap_kernel<unsigned long long>, tiles * divide_up(words, kOverlapChunk), stream,
         reinterpret_cast<const uint2*>(masks), rows, words, tiles, reinterpret_cast<unsigned long long*>(counts));
}

std::int64_t pair_sums_workspace_size(std::int64_t rows, std::int64_t n) {
  const PairCut cut = pair_cut(rows, n);
  return cut.tiles * kPairSums * kPairs * cut.chunks;
}

void pair_sums(const float* values, std::int64_t rows, std::int64_t n, float eps, float scale, double* workspace,
               double* mse, double* kl, void* stream) {
  const PairCut cut = pair_cut(rows, n);
  if (cut.chunks == 0) return;
  launch("pair_sums", &pair_kernel<double>, cut.tiles * cut.chunks, stream, values, rows, n, eps, scale, cut,
         workspace);
  launch("pair_sums: finish", &pair_finish<double>, cut.tiles * kPairs, stream, static_cast<const double*>(workspace),
         rows, cut.chunks, static_cast<double>(scale), mse, kl);
}

}  // namespace cuda
}  // namespace mnmt

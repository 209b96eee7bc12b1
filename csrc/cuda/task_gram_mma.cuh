// The Gram matrix of more than 8 gradients in bf16 or fp16, without a diagonal, on tensor cores: 16 x 16 tiles.
//
// 136 sums of 16 tasks do not fit into a thread's registers beside its loads; as two m16n8k16 products they are 8
// registers a lane, there are no conversions, and for K <= 16 every gradient is read once. Products of 16-bit numbers
// are exact in fp32. Tensor cores add by truncation, so the accumulators are emptied into ordinary fp32 sums after
// every 8 products, which keeps the bias to about 2^-21.
#pragma once

#include "cuda/mma.cuh"
#include "cuda/task_gram.cuh"

namespace mnmt {
namespace cuda {

constexpr int kMmaTile = 16;

template <class T>
__global__ void __launch_bounds__(kThreads, 2) gram_mma(GramArguments x, std::int64_t tiles, std::int64_t granules) {
  constexpr int V = kWidth<T>, U = 4;
  constexpr std::int64_t kStep = 4 * V;          // elements of a row that a warp takes with one load
  constexpr std::int64_t kWarpStep = U * kStep;  // 256 contiguous bytes of every row
  const std::int64_t chunk_index = blockIdx.x / tiles;
  std::int64_t row, column;
  pair_of(blockIdx.x % tiles, &row, &column);
  const Chunk chunk = find_chunk(x.table, chunk_index, granules * V);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const T *rows[2], *columns[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    rows[half] = gradient<T>(x, row * kMmaTile + half * 8 + lane / 4, chunk.fragment);
    columns[half] = gradient<T>(x, column * kMmaTile + half * 8 + lane / 4, chunk.fragment);
  }

  float sums[2][4] = {};
  for (std::int64_t base = chunk.begin + warp * kWarpStep; base < chunk.end; base += kWarps * kWarpStep) {
    const std::int64_t i = base + lane % 4 * V;
    Granule<T> a[U][2], b[U][2];
    load_streams(rows, i, kStep, chunk.n, chunk.whole(kGradients), a);
    if (row != column) {
      load_streams(columns, i, kStep, chunk.n, chunk.whole(kGradients), b);
    } else {
#pragma unroll
      for (int u = 0; u < U; ++u) b[u][0] = a[u][0], b[u][1] = a[u][1];
    }
    __syncwarp();
    float products[2][4] = {};
#pragma unroll
    for (int u = 0; u < U; ++u) {
#pragma unroll
      for (int w = 0; w < 4; w += 2) {  // words w and w + 1 are the inner places t and t + 4
        const std::uint32_t left[4] = {a[u][0].word[w], a[u][1].word[w], a[u][0].word[w + 1], a[u][1].word[w + 1]};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const std::uint32_t right[2] = {b[u][half].word[w], b[u][half].word[w + 1]};
          mma(products[half], left, right, T{});
        }
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[half][e] += products[half][e];
  }

  __shared__ float tile[kWarps][kMmaTile * kMmaTile];
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      tile[warp][mma_row(lane, e) * kMmaTile + half * 8 + mma_column(lane, e)] = sums[half][e];
  __syncthreads();
  static_assert(kThreads == kMmaTile * kMmaTile, "one thread per entry");
  double sum = 0.0;
  for (int w = 0; w < kWarps; ++w) sum += static_cast<double>(tile[w][threadIdx.x]);
  const std::int64_t i = row * kMmaTile + threadIdx.x / kMmaTile, j = column * kMmaTile + threadIdx.x % kMmaTile;
  if (i < x.tasks && j <= i) x.partials[pair_index(i, j) * x.chunks + chunk_index] = sum;
}

}  // namespace cuda
}  // namespace mnmt

// Kernels of fisher_similarity: radix histograms, bit masks, and popcounts of all pairs of masks.
#pragma once

#include "cuda/mma.cuh"

namespace mnmt {
namespace cuda {

// ---------------------------------------------------------------------------------------------------- radix histograms

constexpr int kBins = 2048;
constexpr int kCopies = 4;  // of the histogram in shared memory: equal digits in different warps seldom meet
constexpr int kHistogramBlocksPerProcessor = 4;

__device__ inline std::uint32_t ordered_key(std::uint32_t bits) {
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

// The digit of a key on this level, or -1 where the key is not under the prefix.
template <int kLevel>
__device__ int digit(std::uint32_t key, std::uint32_t prefix) {
  if (kLevel == 0) return static_cast<int>(key >> 21);
  if (kLevel == 1) return key >> 21 == prefix ? static_cast<int>(key >> 10 & 2047u) : -1;
  return key >> 10 == prefix ? static_cast<int>(key & 1023u) : -1;
}

// Blocks of a row stride over its granules. Counts are integers, so neither the grid (which follows the device) nor the
// order of the atomics shows in the result. A thread counts a run of equal digits in a register before it touches
// shared memory: runs of zeros, which Fisher estimates are full of, cost nothing.
template <int kLevel>
__global__ void __launch_bounds__(kThreads, kHistogramBlocksPerProcessor)
    radix_kernel(const float* values, std::int64_t n, const std::int64_t* prefixes, std::int64_t blocks_per_row,
                 std::int64_t* histogram) {
  constexpr int V = kWidth<float>, U = 4;
  __shared__ unsigned counts[kCopies][kBins];
  for (int bin = threadIdx.x; bin < kCopies * kBins; bin += kThreads) counts[bin / kBins][bin % kBins] = 0;
  __syncthreads();

  const std::int64_t row = blockIdx.x / blocks_per_row, block = blockIdx.x % blocks_per_row;
  const float* x = values + row * n;
  const std::uint32_t prefix = kLevel == 0 ? 0 : static_cast<std::uint32_t>(prefixes[row]);
  unsigned* mine = counts[threadIdx.x / kWarp % kCopies];
  int current = -1;
  unsigned run = 0;
  const std::int64_t shift = reinterpret_cast<std::uintptr_t>(x) / sizeof(float) % V;
  const std::int64_t stride = kThreads * V, step = U * stride;
  for (std::int64_t i = block * step + threadIdx.x * V - shift; i < n; i += blocks_per_row * step) {
    Granule<float> granules[U];
    const bool whole = i >= 0 && i + (U - 1) * stride + V <= n;
    if (whole) {
#pragma unroll
      for (int u = 0; u < U; ++u) granules[u] = load_whole(x, i + u * stride);
    } else {
#pragma unroll
      for (int u = 0; u < U; ++u) granules[u] = load_partly(x, i + u * stride, n);
    }
#pragma unroll
    for (int u = 0; u < U; ++u) {
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const std::int64_t at = i + u * stride + e;
        const int bin = digit<kLevel>(ordered_key(granules[u].word[e]), prefix);
        if (bin < 0 || !(whole || (at >= 0 && at < n))) continue;
        if (bin != current) {
          if (run) atomicAdd(mine + current, run);
          current = bin;
          run = 0;
        }
        ++run;
      }
    }
  }
  if (run) atomicAdd(mine + current, run);
  __syncthreads();
  for (int bin = threadIdx.x; bin < kBins; bin += kThreads) {
    unsigned long long sum = 0;
    for (int copy = 0; copy < kCopies; ++copy) sum += counts[copy][bin];
    if (sum) atomicAdd(reinterpret_cast<unsigned long long*>(histogram + row * kBins + bin), sum);
  }
}

// ---------------------------------------------------------------------------------------------------------- bit masks

constexpr int kMaskLoads = 16;  // per thread and step: 64 bytes in flight; a warp writes 16 words of 32 bits
constexpr std::int64_t kMaskStep = kThreads * kMaskLoads;
constexpr std::int64_t kMaskChunk = 4 * kMaskStep;

// Lane l of a warp reads element l of 32 neighbours, so that a ballot is a finished word whatever the row's alignment.
template <class Word>
__global__ void __launch_bounds__(kThreads)
    pack_kernel(const float* values, std::int64_t n, std::int64_t chunks, const float* thresholds, Word* masks) {
  const std::int64_t row = blockIdx.x / chunks, begin = blockIdx.x % chunks * kMaskChunk;
  const std::int64_t words = (n + 63) / 64 * 2;  // of 32 bits, the low half of 64 first
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const float* x = values + row * n;
  const float threshold = thresholds[row];
  for (std::int64_t step = 0; step < kMaskChunk; step += kMaskStep) {
    const std::int64_t base = begin + step + warp * kWarp * kMaskLoads;
    bool set[kMaskLoads];
#pragma unroll
    for (int j = 0; j < kMaskLoads; ++j) {
      const std::int64_t i = base + j * kWarp + lane;
      set[j] = i < n && __ldcs(x + i) >= threshold;
    }
    Word word = 0;
#pragma unroll
    for (int j = 0; j < kMaskLoads; ++j) {
      const Word ballot = __ballot_sync(kAllLanes, set[j]);
      if (lane == j) word = ballot;
    }
    if (lane < kMaskLoads && base / kWarp + lane < words) masks[row * words + base / kWarp + lane] = word;
  }
}

// ----------------------------------------------------------------------------------------------- overlaps of all pairs

constexpr int kOverlapTile = 32;
constexpr std::int64_t kOverlapChunk = 2048;  // words of 64 bits of every row of a tile

// counts += M M^T by tensor cores, which count the bits of 16 x 8 pairs over 256 places at once (m16n8k256, and,
// popcount); with one __popcll per pair and word the population counter (16 results a clock) is the limit, some five
// times slower at 200 masks. A warp holds a 32 x 32 tile; the warps of a block share the chunk's words.
template <class Count>
__global__ void __launch_bounds__(kThreads, 2)
    overlap_kernel(const uint2* masks, std::int64_t rows, std::int64_t words, std::int64_t tiles, Count* counts) {
  constexpr int U = 2, kRows = kOverlapTile / 8;  // 64 or 128 bytes in flight per thread
  __shared__ int tile[kOverlapTile * kOverlapTile];
  for (int p = threadIdx.x; p < kOverlapTile * kOverlapTile; p += kThreads) tile[p] = 0;
  __syncthreads();

  std::int64_t row, column;  // of tiles
  pair_of(blockIdx.x % tiles, &row, &column);
  const std::int64_t begin = blockIdx.x / tiles * kOverlapChunk;
  const std::int64_t end = begin + kOverlapChunk < words ? begin + kOverlapChunk : words;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int sums[kRows / 2][kRows][4] = {};
  for (std::int64_t base = begin + warp * 4 * U; base < end; base += kWarps * 4 * U) {
    uint2 a[kRows][U], b[kRows][U];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const std::int64_t left = row * kOverlapTile + r * 8 + lane / 4, right = column * kOverlapTile + r * 8 + lane / 4;
#pragma unroll
      for (int u = 0; u < U; ++u) {
        const std::int64_t w = base + 4 * u + lane % 4;
        a[r][u] = left < rows && w < end ? __ldg(masks + left * words + w) : uint2{0, 0};
        if (row == column) {
          b[r][u] = a[r][u];
        } else {
          b[r][u] = right < rows && w < end ? __ldg(masks + right * words + w) : uint2{0, 0};
        }
      }
    }
    __syncwarp();
#pragma unroll
    for (int u = 0; u < U; ++u) {
#pragma unroll
      for (int r = 0; r < kRows; r += 2) {
        const std::uint32_t left[4] = {a[r][u].x, a[r + 1][u].x, a[r][u].y, a[r + 1][u].y};
#pragma unroll
        for (int c = 0; c < kRows; ++c) {
          const std::uint32_t right[2] = {b[c][u].x, b[c][u].y};
          mma_bits(sums[r / 2][c], left, right);
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows / 2; ++r)
#pragma unroll
    for (int c = 0; c < kRows; ++c)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        atomicAdd(tile + (r * 16 + mma_row(lane, e)) * kOverlapTile + c * 8 + mma_column(lane, e), sums[r][c][e]);
  __syncthreads();
  for (int p = threadIdx.x; p < kOverlapTile * kOverlapTile; p += kThreads) {
    const std::int64_t i = row * kOverlapTile + p / kOverlapTile, j = column * kOverlapTile + p % kOverlapTile;
    if (i >= rows || j > i || tile[p] == 0) continue;
    atomicAdd(counts + i * rows + j, static_cast<Count>(tile[p]));
    if (j < i) atomicAdd(counts + j * rows + i, static_cast<Count>(tile[p]));
  }
}

}  // namespace cuda
}  // namespace mnmt

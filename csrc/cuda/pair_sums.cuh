// Squared differences and Kullback-Leibler sums of all pairs of rows of [P, n].
//
// Differences are taken element by element: expanding the square (or factoring F_j log F_i) into matrix products would
// cancel for rows that are nearly equal, the pairs that matter. So this is bound by arithmetic, five operations per
// unordered pair and element. A block takes 16 x 16 pairs over a chunk of columns, 128 at a time through shared memory,
// where each logarithm is taken once; a thread owns 4 x 4 pairs and every 16th group of 4 columns. Values are
// multiplied by `scale`, a power of two that brings the largest near 1, so that squares of Fisher values do not leave
// fp32's range.
#pragma once

#include "cuda/device.cuh"

namespace mnmt {
namespace cuda {

constexpr int kPairTile = 16;
constexpr int kPairs = kPairTile * kPairTile;
constexpr int kPairSums = 3;          // squared difference, KL of (i, j), KL of (j, i)
constexpr int kColumns = 128;         // in shared memory at a time
constexpr int kPitch = kColumns + 8;  // rows 8 banks apart: the 16-byte loads below meet in no bank
constexpr std::int64_t kFlush = 32;   // steps of fp32 sums (256 terms per thread) between additions to fp64
constexpr std::int64_t kPairBlock = kFlush * kColumns;

struct PairCut {
  std::int64_t tiles, chunks, columns;  // columns per chunk
};

// A function of the shape alone: enough blocks for any device, few enough for a small workspace.
inline PairCut pair_cut(std::int64_t rows, std::int64_t n) {
  const std::int64_t side = (rows + kPairTile - 1) / kPairTile, tiles = side * (side + 1) / 2;
  std::int64_t chunks = tiles > 0 ? 4096 / tiles : 64;
  chunks = chunks < 64 ? 64 : chunks > 1024 ? 1024 : chunks;
  const std::int64_t columns = ((n + chunks - 1) / chunks + kPairBlock - 1) / kPairBlock * kPairBlock;
  return {tiles, columns > 0 ? (n + columns - 1) / columns : 0, columns};
}

struct PairTile {
  float f[kPairTile][kPitch], log[kPairTile][kPitch];
};

// Rows row0 .. of 128 columns, with zeros (F and log alike, which add nothing) outside.
__device__ inline void load_pair_tile(const float* values, std::int64_t rows, std::int64_t n, float eps, float scale,
                                      std::int64_t row0, std::int64_t column0, PairTile* tile) {
#pragma unroll 4
  for (int p = threadIdx.x; p < kPairTile * kColumns; p += kThreads) {
    const int r = p / kColumns, c = p % kColumns;
    const bool there = row0 + r < rows && column0 + c < n;
    const float f = there ? __ldg(values + (row0 + r) * n + column0 + c) : 0.0f;
    tile->f[r][c] = f * scale;
    tile->log[r][c] = there ? logf(f + eps) : 0.0f;
  }
}

__device__ inline void unpack(const float* p, float (&x)[4]) {
  const float4 v = *reinterpret_cast<const float4*>(p);
  x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
}

// Rows x + 4 r of the left tile and y + 4 s of the right one, over this thread's columns.
__device__ inline void add_pairs(const PairTile& left, const PairTile& right, int x, int y, int slice,
                                 float (&sums)[kPairSums][4][4]) {
#pragma unroll 1
  for (int c = slice * 4; c < kColumns; c += 64) {
    float f[4][4], log[4][4];
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      unpack(&left.f[x + 4 * r][c], f[r]);
      unpack(&left.log[x + 4 * r][c], log[r]);
    }
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      float g[4], log_g[4];
      unpack(&right.f[y + 4 * s][c], g);
      unpack(&right.log[y + 4 * s][c], log_g);
#pragma unroll
      for (int r = 0; r < 4; ++r) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float d = f[r][e] - g[e], l = log_g[e] - log[r][e];
          sums[0][r][s] = fmaf(d, d, sums[0][r][s]);
          sums[1][r][s] = fmaf(g[e], l, sums[1][r][s]);
          sums[2][r][s] = fmaf(-f[r][e], l, sums[2][r][s]);
        }
      }
    }
  }
}

// partials [tiles, kPairSums, kPairs, chunks]; pair p is row p / 16 of the left tile and p % 16 of the right one.
template <class Sum>
__global__ void __launch_bounds__(kThreads, 2) pair_kernel(const float* values, std::int64_t rows, std::int64_t n,
                                                           float eps, float scale, PairCut cut, Sum* partials) {
  __shared__ union Shared {
    PairTile tiles[2];
    float sums[kThreads / 16][kPairs];
  } shared;
  const std::int64_t tile = blockIdx.x % cut.tiles, chunk = blockIdx.x / cut.tiles;
  std::int64_t row, column;
  pair_of(tile, &row, &column);
  const int slice = threadIdx.x / 16, x = threadIdx.x / 4 % 4, y = threadIdx.x % 4;
  const std::int64_t end = (chunk + 1) * cut.columns < n ? (chunk + 1) * cut.columns : n;
  const PairTile& right = shared.tiles[row == column ? 0 : 1];

  Sum totals[kPairSums] = {};
  for (std::int64_t block = chunk * cut.columns; block < end; block += kPairBlock) {
    float sums[kPairSums][4][4] = {};
    for (std::int64_t c = block; c < block + kPairBlock && c < end; c += kColumns) {
      __syncthreads();
      load_pair_tile(values, rows, n, eps, scale, row * kPairTile, c, &shared.tiles[0]);
      if (row != column) load_pair_tile(values, rows, n, eps, scale, column * kPairTile, c, &shared.tiles[1]);
      __syncthreads();
      add_pairs(shared.tiles[0], right, x, y, slice, sums);
    }
#pragma unroll
    for (int q = 0; q < kPairSums; ++q) {
      __syncthreads();
#pragma unroll
      for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int s = 0; s < 4; ++s) shared.sums[slice][(x + 4 * r) * kPairTile + y + 4 * s] = sums[q][r][s];
      __syncthreads();
      for (int other = 0; other < kThreads / 16; ++other)
        totals[q] += static_cast<Sum>(shared.sums[other][threadIdx.x]);
    }
  }
#pragma unroll
  for (int q = 0; q < kPairSums; ++q)
    partials[((tile * kPairSums + q) * kPairs + threadIdx.x) * cut.chunks + chunk] = totals[q];
}

// One block per pair: the chunks' sums in fixed order.
template <class Sum>
__global__ void __launch_bounds__(kThreads)
    pair_finish(const Sum* partials, std::int64_t rows, std::int64_t chunks, double scale, Sum* mse, Sum* kl) {
  const std::int64_t tile = blockIdx.x / kPairs, pair = blockIdx.x % kPairs;
  std::int64_t row, column;
  pair_of(tile, &row, &column);
  const std::int64_t i = row * kPairTile + pair / kPairTile, j = column * kPairTile + pair % kPairTile;
  if (i >= rows || j >= i) return;  // a row and itself differ by nothing
  double sums[kPairSums];
  for (int q = 0; q < kPairSums; ++q) {
    sums[q] = block_sum_of(partials + ((tile * kPairSums + q) * kPairs + pair) * chunks, chunks);
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    const double squares = sums[0] / scale / scale;
    mse[i * rows + j] += squares;
    mse[j * rows + i] += squares;
    kl[i * rows + j] += sums[1] / scale;
    kl[j * rows + i] += sums[2] / scale;
  }
}

}  // namespace cuda
}  // namespace mnmt

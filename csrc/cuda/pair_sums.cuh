// Squared differences and Kullback-Leibler sums of all pairs of rows of [P, n].
//
// Differences are taken element by element: expanding the square (or factoring F_j log F_i) into matrix products would
// cancel for rows that are nearly equal, the pairs that matter. So this is bound by arithmetic, five operations per
// unordered pair and element. A block takes 16 x 16 pairs over a chunk of columns, 128 at a time through shared memory,
// where each logarithm is taken once, in hardware: logf is some forty instructions, as many as all pairs of an element
// together. A thread owns 4 x 4 pairs and every 16th group of 4 columns; of these pairs it leaves out, four at a time,
// what lies beyond the last row or, in a tile on the diagonal, above it. Values are multiplied by `scale`, a power of
// two that brings the largest near 1, so that squares of Fisher values do not leave fp32's range.
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
constexpr double kLog2 = 0.69314718055994530942;  // logarithms are to base 2 up to the last sums

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

// log2 of a normal number above 0, to two units in the last place (or 2^-22 near 1).
__device__ inline float log2_of(float x) {
#if defined(__CUDACC__)
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return std::log2(x);
#endif
}

constexpr int kTileLoads = kPairTile * kColumns / kThreads;  // of a thread
constexpr int kTileRows = kThreads / kColumns;               // rows of a tile that are loaded together

// This thread's elements of rows row0 .. of 128 columns. Columns from n on are 0 in all rows alike, which adds nothing;
// instead of rows from `rows` on stands the last one again: nobody asks for their sums.
struct TileLoad {
  float f[kTileLoads];

  __device__ void load(const float* values, std::int64_t rows, std::int64_t n, std::int64_t row0,
                       std::int64_t column0) {
    const int left = static_cast<int>(rows - row0 < kPairTile ? rows - row0 : kPairTile) - 1;
    const int row = threadIdx.x / kColumns;
    const std::int64_t column = column0 + threadIdx.x % kColumns, step = kTileRows * n;
    const float* p = values + (row0 + (row < left ? row : left)) * n + column;
    const bool there = column < n;
#pragma unroll
    for (int i = 0; i < kTileLoads; ++i) {
      f[i] = there ? __ldg(p) : 0.0f;
      if (row + (i + 1) * kTileRows <= left) p += step;
    }
  }
  __device__ void store(float eps, float scale, PairTile* tile) const {
    const int row = threadIdx.x / kColumns, column = threadIdx.x % kColumns;
#pragma unroll
    for (int i = 0; i < kTileLoads; ++i) {
      tile->f[row + i * kTileRows][column] = f[i] * scale;
      tile->log[row + i * kTileRows][column] = log2_of(f[i] + eps);
    }
  }
};

__device__ inline void unpack(const float* p, float (&x)[4]) {
  const float4 v = *reinterpret_cast<const float4*>(p);
  x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
}

// Rows x + 4 r of the left tile and y + 4 s of the right one, over this thread's columns: all, or those with r < live
// and, where `square`, s <= r.
template <bool kAll>
__device__ void add_pairs(const PairTile& left, const PairTile& right, int x, int y, int slice, int live, bool square,
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
        if (!kAll && (r >= live || (square && s > r))) continue;  // the same for all threads
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
  const bool square = row == column;
  const PairTile& right = shared.tiles[square ? 0 : 1];
  const std::int64_t left_rows = rows - row * kPairTile;
  const int live = left_rows < kPairTile ? static_cast<int>(left_rows + 3) / 4 : 4;

  Sum totals[kPairSums] = {};
  for (std::int64_t block = chunk * cut.columns; block < end; block += kPairBlock) {
    float sums[kPairSums][4][4] = {};
    for (std::int64_t c = block; c < block + kPairBlock && c < end; c += kColumns) {
      TileLoad loads[2];  // before the barrier: they travel while other threads still add
      loads[0].load(values, rows, n, row * kPairTile, c);
      if (!square) loads[1].load(values, rows, n, column * kPairTile, c);
      __syncthreads();
      loads[0].store(eps, scale, &shared.tiles[0]);
      if (!square) loads[1].store(eps, scale, &shared.tiles[1]);
      __syncthreads();
      if (live == 4 && !square) {
        add_pairs<true>(shared.tiles[0], right, x, y, slice, live, square, sums);
      } else {
        add_pairs<false>(shared.tiles[0], right, x, y, slice, live, square, sums);
      }
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
    kl[i * rows + j] += sums[1] * kLog2 / scale;
    kl[j * rows + i] += sums[2] * kLog2 / scale;
  }
}

}  // namespace cuda
}  // namespace mnmt

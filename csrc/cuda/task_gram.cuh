// The Gram matrix of K gradients, each read once for K <= 8 (and for K <= 16 in 16 bits without a diagonal).
//
// K <= 8: a thread holds one or more granules of all K streams and all K (K + 1) / 2 sums in registers. For K = 8 in
// bf16 that is 32 + 36 registers and 128 bytes in flight per thread; two blocks per multiprocessor keep 64 KB in
// flight, where Little's law asks for about 25 KB (4.8 TB/s / 132 times 700 ns). Arithmetic is (K + 1) / 2
// multiply-adds and a conversion per element, under half of the issue slots that the reading leaves. Smaller K unrolls
// instead. K > 8: tiles of the matrix (here 8 x 8; tensor cores in task_gram_mma.cuh), all tiles of a chunk in
// neighbouring blocks, so that the second and later readings come from L2.
#pragma once

#include "cuda/fragments.cuh"

namespace mnmt {
namespace cuda {

enum GramClass { kGradients = 0, kDiagonal = 1, kCombination = 2 };

struct GramArguments {
  Table table;
  std::int64_t tasks, chunks;
  bool diagonal;
  double* partials;  // [pairs, chunks]
};

template <class T>
__device__ const T* gradient(const GramArguments& x, std::int64_t task, std::int64_t fragment) {
  return task < x.tasks ? address_of<const T>(x.table, task, fragment) : nullptr;
}

// U granules, `stride` elements apart, of N streams; zeros for streams that are null and elements outside [0, n).
template <class T, int U, int N>
__device__ void load_streams(const T* const (&streams)[N], std::int64_t i, std::int64_t stride, std::int64_t n,
                             bool whole, Granule<T> (&out)[U][N]) {
  if (whole && i >= 0 && i + (U - 1) * stride + kWidth<T> <= n) {  // all loads before the first use
#pragma unroll
    for (int u = 0; u < U; ++u)
#pragma unroll
      for (int k = 0; k < N; ++k)
        out[u][k] = streams[k] ? load_whole(streams[k], i + u * stride) : Granule<T>{{0, 0, 0, 0}};
  } else {
#pragma unroll
    for (int u = 0; u < U; ++u)
#pragma unroll
      for (int k = 0; k < N; ++k)
        out[u][k] = streams[k] ? load_partly(streams[k], i + u * stride, n) : Granule<T>{{0, 0, 0, 0}};
  }
}

__device__ inline bool inside(std::int64_t i, int width, std::int64_t n) { return i >= 0 && i + width <= n; }

// ------------------------------------------------------------------------------------------------------ up to 8 tasks

template <int K>
constexpr int kUnroll = K <= 2   ? 4
                        : K <= 4 ? 2
                                 : 1;

// Granules of a chunk: 256 KB in all streams together. A block then lasts about 16 us at full rate; its reduction costs
// a few per cent of that, hidden behind its neighbours, and the last blocks' tail 2 to 4 % of a 110M gradient.
template <int K>
constexpr int kTriangleGranules = 16384 / K;

template <class T, int K, bool kWeighted, bool kCombined>
__global__ void __launch_bounds__(kThreads, K <= 4 ? 3 : 2) gram_triangle(GramArguments x) {
  constexpr int V = kWidth<T>, U = kUnroll<K>;
  constexpr std::int64_t kStride = kThreads * V;
  const Chunk chunk = find_chunk(x.table, blockIdx.x, kTriangleGranules<K> * V);
  const T* streams[K];
#pragma unroll
  for (int k = 0; k < K; ++k) streams[k] = gradient<T>(x, k, chunk.fragment);
  const float* diagonal = kWeighted ? address_of<const float>(x.table, x.tasks, chunk.fragment) : nullptr;
  T* combination = kCombined ? address_of<T>(x.table, x.tasks + x.diagonal, chunk.fragment) : nullptr;
  __shared__ float coefficients[K];
  if constexpr (kCombined) {
    const double* given =
        reinterpret_cast<const double*>(x.table.address + (x.tasks + x.diagonal + 1) * x.table.fragments);
    if (static_cast<int>(threadIdx.x) < K)
      coefficients[threadIdx.x] = threadIdx.x < x.tasks ? static_cast<float>(given[threadIdx.x]) : 0.0f;
    __syncthreads();
  }

  float sums[K * (K + 1) / 2] = {};
  for (std::int64_t i = chunk.begin + threadIdx.x * V; i < chunk.end; i += U * kStride) {
    Granule<T> granules[U][K];
    load_streams(streams, i, kStride, chunk.n, chunk.whole(kGradients), granules);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const std::int64_t at = i + u * kStride;
      float weights[V], combined[V];
      if constexpr (kWeighted)
        load_floats(diagonal, at, chunk.n, chunk.whole(kDiagonal) && inside(at, V, chunk.n), weights);
#pragma unroll
      for (int e = 0; e < V; ++e) {
        float g[K];
        combined[e] = 0.0f;
#pragma unroll
        for (int k = 0; k < K; ++k) {
          g[k] = element(granules[u][k], e);
          if constexpr (kCombined) combined[e] = fmaf(coefficients[k], g[k], combined[e]);
        }
#pragma unroll
        for (int k = 0; k < K; ++k) {
          const float weighted = kWeighted ? weights[e] * g[k] : g[k];
#pragma unroll
          for (int l = 0; l <= k; ++l) sums[k * (k + 1) / 2 + l] = fmaf(weighted, g[l], sums[k * (k + 1) / 2 + l]);
        }
      }
      if constexpr (kCombined)
        store_floats(combination, at, chunk.n, chunk.whole(kCombination) && inside(at, V, chunk.n), combined);
    }
  }
  block_sums(sums, [&](int pair, double sum) {
    if (pair < pair_index(x.tasks, 0)) x.partials[pair * x.chunks + blockIdx.x] = sum;
  });
}

// ------------------------------------------------------------------------------------------------- any number of tasks

constexpr int kTile = 8;

// Granules of a chunk where the matrix is cut into tiles: more for many tasks, so that partial sums stay under 1 % of
// the gradients.
inline std::int64_t tiled_granules(std::int64_t tasks) { return tasks <= 32 ? 2048 : 8192; }

template <class T, bool kWeighted>
__global__ void __launch_bounds__(kThreads, 1)
    gram_rectangle(GramArguments x, std::int64_t tiles, std::int64_t granules) {
  constexpr int V = kWidth<T>;
  const std::int64_t chunk_index = blockIdx.x / tiles;
  std::int64_t row, column;
  pair_of(blockIdx.x % tiles, &row, &column);
  const Chunk chunk = find_chunk(x.table, chunk_index, granules * V);
  const T *rows[kTile], *columns[kTile];
#pragma unroll
  for (int k = 0; k < kTile; ++k) {
    rows[k] = gradient<T>(x, row * kTile + k, chunk.fragment);
    columns[k] = gradient<T>(x, column * kTile + k, chunk.fragment);
  }
  const float* diagonal = kWeighted ? address_of<const float>(x.table, x.tasks, chunk.fragment) : nullptr;

  float sums[kTile * kTile] = {};
  for (std::int64_t i = chunk.begin + threadIdx.x * V; i < chunk.end; i += kThreads * V) {
    Granule<T> a[1][kTile], b[1][kTile];
    load_streams(rows, i, 0, chunk.n, chunk.whole(kGradients), a);
    load_streams(columns, i, 0, chunk.n, chunk.whole(kGradients), b);
    float weights[V];
    if constexpr (kWeighted)
      load_floats(diagonal, i, chunk.n, chunk.whole(kDiagonal) && inside(i, V, chunk.n), weights);
#pragma unroll
    for (int e = 0; e < V; ++e) {
      float g[kTile];
#pragma unroll
      for (int l = 0; l < kTile; ++l) g[l] = element(b[0][l], e);
#pragma unroll
      for (int k = 0; k < kTile; ++k) {
        const float weighted = kWeighted ? weights[e] * element(a[0][k], e) : element(a[0][k], e);
#pragma unroll
        for (int l = 0; l < kTile; ++l) sums[k * kTile + l] = fmaf(weighted, g[l], sums[k * kTile + l]);
      }
    }
  }
  block_sums(sums, [&](int p, double sum) {
    const std::int64_t i = row * kTile + p / kTile, j = column * kTile + p % kTile;
    if (i < x.tasks && j <= i) x.partials[pair_index(i, j) * x.chunks + chunk_index] = sum;
  });
}

// sum_k coefficients[k] g_k alone, for more than 8 tasks.
template <class T>
__global__ void __launch_bounds__(kThreads) gram_combine(GramArguments x, std::int64_t granules) {
  constexpr int V = kWidth<T>, U = 8;
  const Chunk chunk = find_chunk(x.table, blockIdx.x, granules * V);
  T* out = address_of<T>(x.table, x.tasks + x.diagonal, chunk.fragment);
  const double* coefficients =
      reinterpret_cast<const double*>(x.table.address + (x.tasks + x.diagonal + 1) * x.table.fragments);
  for (std::int64_t i = chunk.begin + threadIdx.x * V; i < chunk.end; i += kThreads * V) {
    float sums[V] = {};
    for (std::int64_t first = 0; first < x.tasks; first += U) {
      const T* streams[U];
#pragma unroll
      for (int k = 0; k < U; ++k) streams[k] = gradient<T>(x, first + k, chunk.fragment);
      Granule<T> granule[1][U];
      load_streams(streams, i, 0, chunk.n, chunk.whole(kGradients), granule);
#pragma unroll
      for (int k = 0; k < U; ++k) {
        const float coefficient = first + k < x.tasks ? static_cast<float>(coefficients[first + k]) : 0.0f;
#pragma unroll
        for (int e = 0; e < V; ++e) sums[e] = fmaf(coefficient, element(granule[0][k], e), sums[e]);
      }
    }
    store_floats(out, i, chunk.n, chunk.whole(kCombination) && inside(i, V, chunk.n), sums);
  }
}

}  // namespace cuda
}  // namespace mnmt

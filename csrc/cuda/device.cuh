// What the kernels stand on: launching, elements of the three types, 16-byte granules, sums over warps and blocks.
//
// Everything here and in the other .cuh files also compiles with a plain C++ compiler on top of
// tests/cuda_emulation.h, which runs the threads of a block as fibers: so the kernels are tested, under sanitizers too,
// where there is no GPU.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "tests/cuda_emulation.h"
#endif

#include "mnmt/types.h"

namespace mnmt {
namespace cuda {

constexpr int kWarp = 32;
constexpr int kThreads = 256;  // of every block
constexpr int kWarps = kThreads / kWarp;
constexpr unsigned kAllLanes = 0xffffffffu;

// ----------------------------------------------------------------------------------------------------------- launching

#if defined(__CUDACC__)
inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

template <class... Parameters, class... Arguments>
void launch(const char* what, void (*kernel)(Parameters...), std::int64_t blocks, void* stream,
            Arguments... arguments) {
  if (blocks == 0) return;
  if (blocks > 0x7fffffff) throw std::runtime_error(std::string(what) + ": more than 2^31 blocks");
  kernel<<<static_cast<unsigned>(blocks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      static_cast<Parameters>(arguments)...);
  check(cudaGetLastError(), what);
}
#else
template <class... Parameters, class... Arguments>
void launch(const char*, void (*kernel)(Parameters...), std::int64_t blocks, void*, Arguments... arguments) {
  emulation::run(blocks, kThreads, [&] { kernel(static_cast<Parameters>(arguments)...); });
}
#endif

// ------------------------------------------------------------------------------------------------------------ elements

#if defined(__CUDACC__)
__device__ inline float half_to_float(std::uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
__device__ inline std::uint16_t float_to_half(float x) { return __half_as_ushort(__float2half_rn(x)); }
#endif

// 16 bytes of one stream as they lie in memory: 4 fp32 or 8 16-bit elements. Streams are loaded, held and stored so.
template <class T>
constexpr int kWidth = 16 / static_cast<int>(sizeof(T));

template <class T>
struct Granule {
  std::uint32_t word[4];
};

// Element e as fp32. For bf16 this is one shift or mask; every index must be known when compiling.
__device__ inline float element(const Granule<float>& x, int e) { return __uint_as_float(x.word[e]); }
__device__ inline float element(const Granule<bf16>& x, int e) {
  return __uint_as_float(e % 2 ? x.word[e / 2] & 0xffff0000u : x.word[e / 2] << 16);
}
__device__ inline float element(const Granule<f16>& x, int e) {
  return half_to_float(static_cast<std::uint16_t>(x.word[e / 2] >> (e % 2 * 16)));
}

__device__ inline std::uint32_t bits_of(float x) { return __float_as_uint(x); }
__device__ inline std::uint32_t bits_of(bf16 x) { return x.bits; }
__device__ inline std::uint32_t bits_of(f16 x) { return x.bits; }

__device__ inline void narrow(float x, float* out) { *out = x; }
__device__ inline void narrow(float x, bf16* out) {  // to nearest, ties to even; NaN stays NaN
  const std::uint32_t bits = __float_as_uint(x);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out->bits = static_cast<std::uint16_t>(x != x ? (bits >> 16) | 0x40u : rounded);
}
__device__ inline void narrow(float x, f16* out) { out->bits = float_to_half(x); }

// The granule at element i of a stream whose address there is a multiple of 16. Gradients are read once: evict first.
template <class T>
__device__ Granule<T> load_whole(const T* p, std::int64_t i) {
  const uint4 x = __ldcs(reinterpret_cast<const uint4*>(p + i));
  return {{x.x, x.y, x.z, x.w}};
}

// The same anywhere: element by element, with zeros outside [0, n).
template <class T>
__device__ Granule<T> load_partly(const T* p, std::int64_t i, std::int64_t n) {
  constexpr int kPerWord = 4 / static_cast<int>(sizeof(T));
  Granule<T> x = {{0, 0, 0, 0}};
#pragma unroll
  for (int e = 0; e < kWidth<T>; ++e)
    if (i + e >= 0 && i + e < n) x.word[e / kPerWord] |= bits_of(p[i + e]) << (e % kPerWord * 16);
  return x;
}

// V consecutive elements as fp32. `whole`: all lie in [0, n), at an address that is a multiple of 16.
template <int V, class T>
__device__ void load_floats(const T* p, std::int64_t i, std::int64_t n, bool whole, float (&out)[V]) {
#pragma unroll
  for (int part = 0; part < V; part += kWidth<T>) {
    const Granule<T> x = whole ? load_whole(p, i + part) : load_partly(p, i + part, n);
#pragma unroll
    for (int e = 0; e < kWidth<T>; ++e) out[part + e] = element(x, e);
  }
}

template <int V, class T>
__device__ void store_floats(T* p, std::int64_t i, std::int64_t n, bool whole, const float (&x)[V]) {
  if (whole) {
#pragma unroll
    for (int part = 0; part < V; part += kWidth<T>) {
      T narrowed[kWidth<T>];
#pragma unroll
      for (int e = 0; e < kWidth<T>; ++e) narrow(x[part + e], narrowed + e);
      uint4 packed;
      memcpy(&packed, narrowed, sizeof packed);
      __stcs(reinterpret_cast<uint4*>(p + i + part), packed);
    }
  } else {
#pragma unroll
    for (int e = 0; e < V; ++e)
      if (i + e >= 0 && i + e < n) narrow(x[e], p + i + e);
  }
}

// ---------------------------------------------------------------------------------------------------------------- sums

// Sums N numbers over the 32 lanes at once, halving the numbers with the lanes: about N shuffles where N separate
// butterflies take 5 N. Afterwards this lane holds the sums first .. first + valid - 1 in values[0 .. valid - 1].
template <int N, int kOffset>
__device__ void warp_sum_step(float* values, int lane, int* first, int* valid) {
  if constexpr (kOffset > 0) {
    constexpr int kHalf = (N + 1) / 2;
    const bool upper = lane & kOffset;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const float high = i + kHalf < N ? values[i + kHalf] : 0.0f;
      const float other = __shfl_xor_sync(kAllLanes, upper ? values[i] : high, kOffset);
      values[i] = (upper ? high : values[i]) + other;
    }
    if (upper) {
      *first += kHalf;
      *valid -= kHalf;
    } else {
      *valid = *valid < kHalf ? *valid : kHalf;
    }
    warp_sum_step<kHalf, kOffset / 2>(values, lane, first, valid);
  }
}

// Sums N numbers over the block: fp32 within a warp, fp64 across the warps, always in the same order. emit(p, sum) is
// called once for every p in [0, N), each by some thread.
template <int N, class Emit>
__device__ void block_sums(float (&values)[N], const Emit& emit) {
  constexpr int kLeft = (N + kWarp - 1) / kWarp;  // numbers per lane after five halvings
  __shared__ float sums[kWarps][N];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int first = 0, valid = N;
  warp_sum_step<N, kWarp / 2>(values, lane, &first, &valid);
#pragma unroll
  for (int i = 0; i < kLeft; ++i)
    if (i < valid) sums[warp][first + i] = values[i];
  __syncthreads();
  for (int p = threadIdx.x; p < N; p += kThreads) {
    double sum = 0.0;
    for (int w = 0; w < kWarps; ++w) sum += static_cast<double>(sums[w][p]);
    emit(p, sum);
  }
}

// The sum of `count` doubles in an order that depends on `count` alone; every thread of the block gets it.
__device__ inline double block_sum_of(const double* terms, std::int64_t count) {
  __shared__ double sums[kThreads];
  double sum = 0.0;
  for (std::int64_t i = threadIdx.x; i < count; i += kThreads) sum += terms[i];
  sums[threadIdx.x] = sum;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  __syncthreads();
  return sums[0];
}

// Row i, column j <= i of the lower triangle.
__device__ inline std::int64_t pair_index(std::int64_t i, std::int64_t j) { return i * (i + 1) / 2 + j; }

// The inverse. By counting: there are at most some hundred rows.
__device__ inline void pair_of(std::int64_t pair, std::int64_t* i, std::int64_t* j) {
  std::int64_t row = 0;
  while (pair_index(row + 1, 0) <= pair) ++row;
  *i = row;
  *j = pair - pair_index(row, 0);
}

}  // namespace cuda
}  // namespace mnmt

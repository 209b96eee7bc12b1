// F += scale * g^2 over ragged fragments in one launch: d (b_g + 8) bytes, three operations per element.
#include "cuda/fragments.cuh"
#include "mnmt/cuda.h"

namespace mnmt {
namespace cuda {
namespace {

enum FisherClass { kFisher = 0, kSquared = 1 };

constexpr std::int64_t kFisherGranules = 2048;  // of a chunk: 96 KB (fp32) or 160 KB of traffic
constexpr int kFisherUnroll = 2;  // granules per thread before the first use: 64 (fp32) or 96 bytes in flight

template <class T>
__global__ void __launch_bounds__(kThreads, 4) fisher_kernel(Table table, float scale) {
  constexpr int V = kWidth<T>;
  constexpr std::int64_t kStride = kThreads * V;
  const Chunk chunk = find_chunk(table, blockIdx.x, kFisherGranules * V);
  float* fisher = address_of<float>(table, 0, chunk.fragment);
  const T* gradients = address_of<const T>(table, 1, chunk.fragment);
  for (std::int64_t i = chunk.begin + threadIdx.x * V; i < chunk.end; i += kFisherUnroll * kStride) {
    float f[kFisherUnroll][V], g[kFisherUnroll][V];
    const bool inside = i >= 0 && i + (kFisherUnroll - 1) * kStride + V <= chunk.n;
    if (inside && chunk.whole(kFisher) && chunk.whole(kSquared)) {
#pragma unroll
      for (int u = 0; u < kFisherUnroll; ++u) {
        load_floats(gradients, i + u * kStride, chunk.n, true, g[u]);
        load_floats(fisher, i + u * kStride, chunk.n, true, f[u]);
      }
    } else {
#pragma unroll
      for (int u = 0; u < kFisherUnroll; ++u) {
        load_floats(gradients, i + u * kStride, chunk.n, inside && chunk.whole(kSquared), g[u]);
        load_floats(fisher, i + u * kStride, chunk.n, inside && chunk.whole(kFisher), f[u]);
      }
    }
#pragma unroll
    for (int u = 0; u < kFisherUnroll; ++u) {
#pragma unroll
      for (int e = 0; e < V; ++e) f[u][e] = fmaf(g[u][e] * g[u][e], scale, f[u][e]);
      store_floats(fisher, i + u * kStride, chunk.n, inside && chunk.whole(kFisher), f[u]);
    }
  }
}

}  // namespace

std::string problem() {
#if defined(__CUDACC__)
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, fisher_kernel<float>);
  if (status != cudaSuccess) {
    (void)cudaGetLastError();
    return cudaGetErrorString(status);
  }
#endif
  return {};
}

std::int64_t fisher_table_size(std::int64_t fragments) { return table_header(fragments) + 2 * fragments; }

std::int64_t fisher_plan(Dtype dtype, std::int64_t fragments, const std::int64_t* fisher, const std::int64_t* gradients,
                         const std::int64_t* lengths, std::int64_t* table) {
  const int bytes = static_cast<int>(bytes_of(dtype));
  const StreamClass classes[] = {{fisher, 1, 4, 8}, {gradients, 1, bytes, bytes}};  // by their traffic
  return fill_table(classes, 2, lengths, fragments, 16 / bytes, kFisherGranules, table);
}

void fisher_accumulate(Dtype dtype, std::int64_t fragments, const std::int64_t* table, std::int64_t chunks, float scale,
                       void* stream) {
  const Table t = table_at(table, fragments);
  switch (dtype) {
    case Dtype::f32: launch("fisher_accumulate", &fisher_kernel<float>, chunks, stream, t, scale); break;
    case Dtype::bf16: launch("fisher_accumulate", &fisher_kernel<bf16>, chunks, stream, t, scale); break;
    case Dtype::f16: launch("fisher_accumulate", &fisher_kernel<f16>, chunks, stream, t, scale); break;
  }
}

}  // namespace cuda
}  // namespace mnmt

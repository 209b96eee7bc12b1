#include <cstring>

#include "cuda/task_gram.cuh"
#include "cuda/task_gram_mma.cuh"
#include "mnmt/cuda.h"

namespace mnmt {
namespace cuda {
namespace {

constexpr int kMostInRegisters = 8;

int rounded(std::int64_t tasks) { return tasks <= 2 ? 2 : tasks <= 4 ? 4 : 8; }

std::int64_t granules_per_chunk(std::int64_t tasks) {
  switch (tasks <= kMostInRegisters ? rounded(tasks) : 0) {
    case 2: return kTriangleGranules<2>;
    case 4: return kTriangleGranules<4>;
    case 8: return kTriangleGranules<8>;
    default: return tiled_granules(tasks);
  }
}

template <class T, int K>
void run_triangle(const GramArguments& x, bool combination, void* stream) {
  auto* kernel = x.diagonal ? (combination ? &gram_triangle<T, K, true, true> : &gram_triangle<T, K, true, false>)
                            : (combination ? &gram_triangle<T, K, false, true> : &gram_triangle<T, K, false, false>);
  launch("task_gram", kernel, x.chunks, stream, x);
}

using TiledKernel = void (*)(GramArguments, std::int64_t, std::int64_t);

void run_tiles(TiledKernel kernel, int tile, const GramArguments& x, void* stream) {
  const std::int64_t rows = (x.tasks + tile - 1) / tile, tiles = rows * (rows + 1) / 2;
  launch("task_gram", kernel, x.chunks * tiles, stream, x, tiles, tiled_granules(x.tasks));
}

template <class T>
void run(const GramArguments& x, bool combination, void* stream) {
  if (x.tasks <= kMostInRegisters) {
    switch (rounded(x.tasks)) {
      case 2: return run_triangle<T, 2>(x, combination, stream);
      case 4: return run_triangle<T, 4>(x, combination, stream);
      default: return run_triangle<T, 8>(x, combination, stream);
    }
  }
  if (x.diagonal) {
    run_tiles(&gram_rectangle<T, true>, kTile, x, stream);
  } else if constexpr (sizeof(T) == 2) {
    run_tiles(&gram_mma<T>, kMmaTile, x, stream);
  } else {
    run_tiles(&gram_rectangle<T, false>, kTile, x, stream);
  }
  if (combination) launch("task_gram: combination", &gram_combine<T>, x.chunks, stream, x, tiled_granules(x.tasks));
}

// One block per entry of the lower triangle: the partial sums of the chunks in fixed order, in fp64.
__global__ void __launch_bounds__(kThreads)
    gram_finish(const double* partials, std::int64_t chunks, std::int64_t tasks, double* out) {
  const double sum = block_sum_of(partials + blockIdx.x * chunks, chunks);
  if (threadIdx.x == 0) {
    std::int64_t i, j;
    pair_of(blockIdx.x, &i, &j);
    out[i * tasks + j] = sum;
    out[j * tasks + i] = sum;
  }
}

}  // namespace

std::int64_t gram_table_size(const Gram& gram) {
  return table_header(gram.fragments) + (gram.tasks + gram.diagonal + gram.combination) * gram.fragments +
         (gram.combination ? gram.tasks : 0);
}

std::int64_t gram_plan(const Gram& gram, const std::int64_t* gradients, const std::int64_t* lengths,
                       const std::int64_t* diagonal, const std::int64_t* combination, const float* coefficients,
                       std::int64_t* table) {
  const int bytes = static_cast<int>(bytes_of(gram.dtype));
  StreamClass classes[3];
  classes[kGradients] = {gradients, gram.tasks, bytes, static_cast<int>(gram.tasks)};
  classes[kDiagonal] = {diagonal, gram.diagonal ? 1 : 0, 4, 1};
  classes[kCombination] = {combination, gram.combination ? 1 : 0, bytes, 1};
  const std::int64_t chunks =
      fill_table(classes, 3, lengths, gram.fragments, 16 / bytes, granules_per_chunk(gram.tasks), table);
  if (gram.combination) {
    std::int64_t* last = table + gram_table_size(gram) - gram.tasks;
    for (std::int64_t k = 0; k < gram.tasks; ++k) {
      const double coefficient = coefficients[k];
      std::memcpy(last + k, &coefficient, sizeof coefficient);
    }
  }
  return chunks;
}

std::int64_t gram_workspace_size(const Gram& gram, std::int64_t chunks) {
  return gram.tasks * (gram.tasks + 1) / 2 * chunks;
}

void task_gram(const Gram& gram, const std::int64_t* table, std::int64_t chunks, double* workspace, double* out,
               void* stream) {
  const GramArguments x{table_at(table, gram.fragments), gram.tasks, chunks, gram.diagonal, workspace};
  switch (gram.dtype) {
    case Dtype::f32: run<float>(x, gram.combination, stream); break;
    case Dtype::bf16: run<bf16>(x, gram.combination, stream); break;
    case Dtype::f16: run<f16>(x, gram.combination, stream); break;
  }
  launch("task_gram: finish", &gram_finish, gram.tasks * (gram.tasks + 1) / 2, stream,
         static_cast<const double*>(workspace), chunks, gram.tasks, out);
}

}  // namespace cuda
}  // namespace mnmt

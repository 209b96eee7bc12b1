// Kernels over the parameters on a GPU. Nothing here allocates: the caller makes every table, workspace and output, on
// the device unless said otherwise, and keeps them until `stream` (a cudaStream_t) has passed the call. Sizes are
// int64. Every result is a function of values, lengths and alignment alone: the same bits on each run, whatever the
// number of multiprocessors. Errors of the CUDA runtime are std::runtime_error with its message.
#pragma once

#include <cstdint>
#include <string>

#include "mnmt/types.h"

namespace mnmt {
namespace cuda {

// Why kernels cannot run on the current device (no machine code for it, driver too old); empty where they can.
std::string problem();

// The Gram matrix of `tasks` gradients of `fragments` fragments each, with or without a diagonal and a combination.
struct Gram {
  Dtype dtype;
  std::int64_t tasks, fragments;
  bool diagonal, combination;
};

// Entries of the table of a call.
std::int64_t gram_table_size(const Gram& gram);

// Fills the table in host memory (the caller then copies it to the device) and returns the number of chunks.
// gradients: addresses [tasks * fragments], task-major; lengths [fragments]; diagonal, combination: addresses
// [fragments] or null; coefficients [tasks] or null.
std::int64_t gram_plan(const Gram& gram, const std::int64_t* gradients, const std::int64_t* lengths,
                       const std::int64_t* diagonal, const std::int64_t* combination, const float* coefficients,
                       std::int64_t* table);

// Doubles of workspace.
std::int64_t gram_workspace_size(const Gram& gram, std::int64_t chunks);

// out [tasks, tasks].
void task_gram(const Gram& gram, const std::int64_t* table, std::int64_t chunks, double* workspace, double* out,
               void* stream);

// F += scale * g^2. Table as above: size, plan on the host, run on the device.
std::int64_t fisher_table_size(std::int64_t fragments);
std::int64_t fisher_plan(Dtype dtype, std::int64_t fragments, const std::int64_t* fisher, const std::int64_t* gradients,
                         const std::int64_t* lengths, std::int64_t* table);
void fisher_accumulate(Dtype dtype, std::int64_t fragments, const std::int64_t* table, std::int64_t chunks, float scale,
                       void* stream);

// histogram [rows, 2048] += counts of one digit of the ordered keys of values [rows, n] under a prefix [rows]. A key is
// the float's bits, all flipped where negative, else the sign alone. Level 0 counts key >> 21; level 1
// (key >> 10) & 2047 where key >> 21 == prefix; level 2 key & 1023 where key >> 10 == prefix.
void radix_histogram(const float* values, std::int64_t rows, std::int64_t n, const std::int64_t* prefix, int level,
                     std::int64_t* histogram, void* stream);

// Bit i of word w of a row: values[64 w + i] >= threshold; bits from n on are 0. masks [rows, ceil(n / 64)].
void pack_masks(const float* values, std::int64_t rows, std::int64_t n, const float* thresholds, std::int64_t* masks,
                void* stream);

// counts [rows, rows] += popcount(m_i & m_j) for all pairs of masks [rows, words].
void mask_overlap(const std::int64_t* masks, std::int64_t rows, std::int64_t words, std::int64_t* counts, void* stream);

// For all pairs of rows i, j of values [rows, n]: mse [rows, rows] += sum (F_i - F_j)^2 and
// kl [rows, rows] += sum F_j (log(F_j + eps) - log(F_i + eps)). `scale`: a power of two that brings the largest value
// near 1.
std::int64_t pair_sums_workspace_size(std::int64_t rows, std::int64_t n);  // doubles
void pair_sums(const float* values, std::int64_t rows, std::int64_t n, float eps, float scale, double* workspace,
               double* mse, double* kl, void* stream);

}  // namespace cuda
}  // namespace mnmt

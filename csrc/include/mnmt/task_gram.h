// Inner products of all pairs of K gradients, and their combination, in one pass over memory.
#pragma once

#include <cstdint>
#include <vector>

#include "mnmt/types.h"

namespace mnmt {

struct TaskGram {
  Dtype dtype;
  int tasks;                           // K
  std::vector<std::int64_t> sizes;     // [F] elements of each fragment
  std::vector<const void*> gradients;  // [K * F], task-major
  std::vector<const float*> diagonal;  // [F] weights w, or empty: all 1
  std::vector<float> coefficients;     // [K] a, or empty: no combination
  std::vector<void*> combination;      // [F] written: sum_k a_k g_k in `dtype`; or empty
};

// gram[i * K + j] = sum_p w_p g_ip g_jp, symmetric. Sums are fp32 within a tile of at most 2048 elements and fp64
// across tiles, in an order that depends on the problem and the instruction set only: every run, on any number of
// threads, gives the same bits.
void task_gram(const TaskGram& problem, double* gram, int threads);

}  // namespace mnmt

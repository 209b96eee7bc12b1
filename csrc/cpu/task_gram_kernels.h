#pragma once

#include <cstdint>

#include "mnmt/types.h"

namespace mnmt {

constexpr int kGramPadding = 4;

// The same n elements of each of the K gradients, few enough that they stay in the first-level cache while all pairs
// pass over them.
struct GramTile {
  Dtype dtype;
  int tasks;
  std::int64_t n;
  const void* const* rows;    // [K], and the last one repeated to a multiple of kGramPadding
  const float* weights;       // [n], or null
  const float* coefficients;  // [K], or null
  void* combination;          // [n] of dtype, or null
};

// One thread's memory, on cache lines.
struct GramMemory {
  double* sums;        // added to
  float* staged;       // for rows that have to be widened or filled up
  const float** rows;  // [K] and padding
};

struct GramKernels {
  std::int64_t (*tile_elements)(Dtype dtype, int tasks, bool weighted);  // the most elements of a tile
  std::int64_t (*sums_size)(int tasks);
  std::int64_t (*staged_size)(int tasks, std::int64_t n);
  void (*add_tile)(const GramTile& tile, const GramMemory& memory);
  void (*pairs)(const double* sums, int tasks, double* out);  // those of all pairs i <= j, row by row
};

}  // namespace mnmt

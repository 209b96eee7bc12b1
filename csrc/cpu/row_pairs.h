// All pairs of P rows, two by two: a tile of four pairs loads four rows for four pairs' work. The columns are cut into
// runs of blocks, each run with sums of its own; how many runs there are depends on the shape alone.
#pragma once

#include <algorithm>
#include <cstdint>

namespace mnmt {

constexpr std::int64_t kMaxRuns = 64;          // enough for as many threads
constexpr std::int64_t kMinRuns = 8;           // however many rows there are
constexpr std::int64_t kRunBytes = 256 << 20;  // about which all runs' sums may take, at 16 bytes a pair

inline std::int64_t runs_of(std::int64_t blocks, std::int64_t rows) {
  const std::int64_t fitting = kRunBytes / (16 * rows * rows + 1);
  return std::min(blocks, std::max(kMinRuns, std::min(kMaxRuns, fitting)));
}

// body(b) for the blocks of run `run`, in order.
template <class Body>
void for_blocks(std::int64_t run, std::int64_t runs, std::int64_t blocks, const Body& body) {
  for (std::int64_t b = run * blocks / runs; b < (run + 1) * blocks / runs; ++b) body(b);
}

// body(i, j), i <= j, for tiles of the rows {i, i + 1} and {j, j + 1}. Where P is odd, the last row stands in for the
// one beyond it (`clamped`), and what comes of that is not stored.
template <class Body>
void for_tiles(std::int64_t rows, const Body& body) {
  for (std::int64_t i = 0; i < rows; i += 2)
    for (std::int64_t j = i; j < rows; j += 2) body(i, j);
}

inline std::int64_t clamped(std::int64_t row, std::int64_t rows) { return std::min(row, rows - 1); }

// store(row i + di, row j + dj, index 2 di + dj) for the pairs of a tile that exist, each unordered pair once.
template <class Store>
void for_pairs(std::int64_t i, std::int64_t j, std::int64_t rows, const Store& store) {
  for (std::int64_t s = i; s < std::min(i + 2, rows); ++s)
    for (std::int64_t t = std::max(s, j); t < std::min(j + 2, rows); ++t) store(s, t, 2 * (s - i) + (t - j));
}

}  // namespace mnmt

// How alike the Fisher informations of P tasks are: the value that parts a row's largest elements from the rest, masks
// of the elements above it, and sums over all pairs of rows. `values` is [rows, n], contiguous. Sums and counts are
// added to what the outputs hold, and do not depend on the number of threads.
#pragma once

#include <cstdint>

namespace mnmt {

// The radix key of a float orders as the float does: u ^ (sign of u ? 0xffffffff : 0x80000000). Levels 0, 1, 2 count
// its bits 21-31, 10-20 and 0-9, levels 1 and 2 among the elements whose key starts with the row's prefix (11 and 22
// bits).
constexpr std::int64_t kRadixBins = 2048;
void radix_histogram(const float* values, std::int64_t rows, std::int64_t n, const std::int64_t* prefix, int level,
                     std::int64_t* histogram, int threads);

// Counts the elements of each row against low <= high, and copies those strictly between them into
// candidates[row, capacity] from sizes[row] on, in any order. counts[row] is {> high, >= high, > low, >= low, runs of
// elements that hold an infinity or NaN or did not fit}: where the last is 0, the row's candidates are complete.
constexpr std::int64_t kBracketCounts = 5;
void collect_between(const float* values, std::int64_t rows, std::int64_t n, const float* low, const float* high,
                     std::int64_t* counts, float* candidates, std::int64_t capacity, std::int64_t* sizes, int threads);

// Bit i of word w of a row of masks[rows, ceil(n / 64)]: values[64 w + i] >= threshold. Bits beyond n are 0.
void pack_masks(const float* values, std::int64_t rows, std::int64_t n, const float* thresholds, std::uint64_t* masks,
                int threads);

// counts[i, j] += bits that masks[i] and masks[j] share, for all pairs; masks is [rows, words].
void mask_overlap(const std::uint64_t* masks, std::int64_t rows, std::int64_t words, std::int64_t* counts, int threads);

// mse[t, a] += sum (F_t - F_a)^2 and kl[t, a] += sum F_a (log(F_a + eps) - log(F_t + eps)), for all pairs of rows of
// non-negative values; eps is a normal float.
void pair_sums(const float* values, std::int64_t rows, std::int64_t n, float eps, double* mse, double* kl, int threads);

}  // namespace mnmt

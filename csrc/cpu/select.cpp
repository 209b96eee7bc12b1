#include <algorithm>
#include <vector>

#include "cpu/select_kernels.h"
#include "mnmt/fisher_similarity.h"
#include "mnmt/isa.h"
#include "mnmt/parallel.h"

namespace mnmt {

MNMT_PER_ISA(SelectKernels, select_kernels)

namespace {

constexpr std::int64_t kHistogramItem = 1 << 18;
constexpr std::int64_t kBetweenItem = 1 << 15;

// body(row, start, length) over pieces of every row.
template <class Body>
void for_pieces(std::int64_t rows, std::int64_t n, std::int64_t piece, int threads, const Body& body) {
  const std::int64_t pieces = (n + piece - 1) / piece;
  parallel_for(rows * pieces, threads, [&](std::int64_t item) {
    const std::int64_t start = item % pieces * piece;
    body(item / pieces, start, std::min(piece, n - start));
  });
}

// The inner loops count plain bit patterns; a key flips all bits of a negative float, and the sign of others.
struct Pattern {
  std::uint32_t prefix;
  std::uint32_t flip;  // of a digit, at levels 1 and 2
};

Pattern pattern(std::int64_t key_prefix, int level) {
  if (level == 0) return {0, 0};
  const std::uint32_t bits = level == 1 ? 11 : 22, sign = 1u << (bits - 1);
  const auto key = static_cast<std::uint32_t>(key_prefix);
  const std::uint32_t digits = level == 1 ? 2047 : 1023;
  return key & sign ? Pattern{key ^ sign, 0} : Pattern{~key & (2 * sign - 1), digits};
}

std::uint32_t first_digit(std::uint32_t bits) { return bits < 1024 ? bits + 1024 : 2047 - bits; }

}  // namespace

void radix_histogram(const float* values, std::int64_t rows, std::int64_t n, const std::int64_t* prefix, int level,
                     std::int64_t* histogram, int threads) {
  const auto& kernels = select_kernels_per_isa.active();
  for_pieces(rows, n, kHistogramItem, threads, [&](std::int64_t row, std::int64_t start, std::int64_t length) {
    const Pattern wanted = pattern(prefix[row], level);
    std::uint32_t counts[kRadixBins];
    kernels.histogram(values + row * n + start, length, level, wanted.prefix, counts);
    for (std::uint32_t b = 0; b < kRadixBins; ++b) {
      if (counts[b] == 0) continue;
      std::int64_t& total = histogram[row * kRadixBins + (level == 0 ? first_digit(b) : b ^ wanted.flip)];
#pragma omp atomic
      total += counts[b];
    }
  });
}

void collect_between(const float* values, std::int64_t rows, std::int64_t n, const float* low, const float* high,
                     std::int64_t* counts, float* candidates, std::int64_t capacity, std::int64_t* sizes, int threads) {
  const auto& kernels = select_kernels_per_isa.active();
  for_pieces(rows, n, kBetweenItem, threads, [&](std::int64_t row, std::int64_t start, std::int64_t length) {
    float found[kBetweenItem + 16];
    std::int64_t piece[kBracketCounts] = {};
    bool usable = true;
    const std::int64_t size =
        kernels.between(values + row * n + start, length, low[row], high[row], found, piece, &usable);
    std::int64_t at;
#pragma omp atomic capture
    {
      at = sizes[row];
      sizes[row] += size;
    }
    const std::int64_t room = std::max<std::int64_t>(0, std::min(size, capacity - at));
    std::copy_n(found, room, candidates + row * capacity + std::min(at, capacity));
    piece[kBracketCounts - 1] = !usable || room < size;
    for (std::int64_t c = 0; c < kBracketCounts; ++c) {
      std::int64_t& total = counts[row * kBracketCounts + c];
#pragma omp atomic
      total += piece[c];
    }
  });
}

}  // namespace mnmt

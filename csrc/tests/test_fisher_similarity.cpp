// Histograms, brackets, masks, overlaps and sums over pairs against plain loops, for every instruction set, for lengths
// around every boundary, and the same for any number of threads.
#include "mnmt/fisher_similarity.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "mnmt/isa.h"

namespace {

using Size = std::int64_t;
constexpr int kThreads[] = {1, 2, 3};

// Exactly as long as asked, so that the address sanitizer sees a read beyond.
std::vector<float> values(Size n, bool with_ties) {
  std::mt19937 random(static_cast<unsigned>(n));
  std::normal_distribution<float> normal;
  std::vector<float> x(n);
  for (auto& v : x) {
    v = normal(random);
    if (with_ties && random() % 2) v = random() % 2 ? 0.0f : -0.0f;
  }
  return x;
}

std::uint32_t key(float x) {
  std::uint32_t u;
  std::memcpy(&u, &x, 4);
  return u ^ (u >> 31 ? 0xffffffffu : 0x80000000u);
}

void test_histogram(Size rows, Size n) {
  const auto x = values(rows * n, true);
  for (int level : {0, 1, 2}) {
    const int shift[] = {21, 10, 0};
    std::vector<Size> prefix(rows, 0), expected(rows * mnmt::kRadixBins, 1);
    for (Size r = 0; r < rows; ++r) {
      if (level > 0) prefix[r] = key(x[r * n + n / 2]) >> (shift[level] + (level == 1 ? 11 : 10));
      for (Size i = 0; i < n; ++i) {
        const std::uint32_t k = key(x[r * n + i]);
        const bool wanted = level == 0 || k >> (level == 1 ? 21 : 10) == prefix[r];
        expected[r * mnmt::kRadixBins + (k >> shift[level] & (level == 2 ? 1023 : 2047))] += wanted;
      }
    }
    for (int threads : kThreads) {
      std::vector<Size> histogram(rows * mnmt::kRadixBins, 1);
      mnmt::radix_histogram(x.data(), rows, n, prefix.data(), level, histogram.data(), threads);
      CHECK(histogram == expected);
    }
  }
}

void test_between(Size rows, Size n, float low, float high) {
  const auto x = values(rows * n, true);
  const std::vector<float> lows(rows, low), highs(rows, high);
  for (int threads : kThreads) {
    std::vector<Size> counts(rows * mnmt::kBracketCounts), sizes(rows, 0);
    std::vector<float> found(rows * n);
    mnmt::collect_between(x.data(), rows, n, lows.data(), highs.data(), counts.data(), found.data(), n, sizes.data(),
                          threads);
    for (Size r = 0; r < rows; ++r) {
      std::vector<float> expected;
      Size numbers[mnmt::kBracketCounts] = {};
      for (Size i = 0; i < n; ++i) {
        const float v = x[r * n + i];
        if (v > low && v < high) expected.push_back(v);
        numbers[0] += v > high;
        numbers[1] += v >= high;
        numbers[2] += v > low;
        numbers[3] += v >= low;
      }
      CHECK(std::equal(numbers, numbers + mnmt::kBracketCounts, &counts[r * mnmt::kBracketCounts]));
      CHECK(sizes[r] == static_cast<Size>(expected.size()));
      std::vector<float> ours(found.begin() + r * n, found.begin() + r * n + sizes[r]);
      std::sort(ours.begin(), ours.end());
      std::sort(expected.begin(), expected.end());
      CHECK(ours == expected);
    }
  }
}

// Too little room, and values that are not finite, are reported; nothing is written beyond the room.
void test_between_reports() {
  const Size n = 100000, room = 10;
  auto x = values(n, false);
  const float low = -1.0f, high = 1.0f;
  std::vector<float> found(room);
  std::vector<Size> counts(mnmt::kBracketCounts), size(1, 0);
  mnmt::collect_between(x.data(), 1, n, &low, &high, counts.data(), found.data(), room, size.data(), 2);
  CHECK(counts[4] > 0);
  CHECK(std::all_of(found.begin(), found.end(), [&](float v) { return v > low && v < high; }));
  for (float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()})
    for (Size i : {Size{3}, n - 1}) {
      auto y = x;
      y[i] = bad;
      const float same = 0.5f;
      counts.assign(mnmt::kBracketCounts, 0);
      size[0] = 0;
      mnmt::collect_between(y.data(), 1, n, &same, &same, counts.data(), found.data(), room, size.data(), 2);
      CHECK(counts[4] == 1);
    }
}

void test_masks(Size rows, Size n) {
  const auto x = values(rows * n, true);
  const Size words = (n + 63) / 64;
  std::vector<float> thresholds(rows);
  for (Size r = 0; r < rows; ++r) thresholds[r] = 0.25f * static_cast<float>(r % 3);
  std::vector<std::uint64_t> expected(rows * words, 0);
  for (Size r = 0; r < rows; ++r)
    for (Size i = 0; i < n; ++i)
      expected[r * words + i / 64] |= static_cast<std::uint64_t>(x[r * n + i] >= thresholds[r]) << (i % 64);
  std::vector<Size> shared(rows * rows, 2);
  for (Size s = 0; s < rows; ++s)
    for (Size t = 0; t < rows; ++t)
      for (Size w = 0; w < words; ++w)
        for (std::uint64_t bits = expected[s * words + w] & expected[t * words + w]; bits; bits &= bits - 1)
          ++shared[s * rows + t];
  for (int threads : kThreads) {
    std::vector<std::uint64_t> masks(rows * words, ~0ull);
    mnmt::pack_masks(x.data(), rows, n, thresholds.data(), masks.data(), threads);
    CHECK(masks == expected);
    std::vector<Size> counts(rows * rows, 2);
    mnmt::mask_overlap(masks.data(), rows, words, counts.data(), threads);
    CHECK(counts == shared);
  }
}

void test_pair_sums(Size rows, Size n) {
  auto x = values(rows * n, true);
  for (auto& v : x) v = v * v * 1e-24f;  // squares of these underflow in fp32
  const float eps = 1e-30f;
  std::vector<double> mse(rows * rows, 0.0), kl(rows * rows, 0.0);
  mnmt::pair_sums(x.data(), rows, n, eps, mse.data(), kl.data(), 1);
  for (Size t = 0; t < rows; ++t)
    for (Size a = 0; a < rows; ++a) {
      double squares = 0.0, weighted = 0.0, size = 0.0;
      for (Size i = 0; i < n; ++i) {
        const double ft = x[t * n + i], fa = x[a * n + i], term = fa * (std::log(fa + eps) - std::log(ft + eps));
        squares += (ft - fa) * (ft - fa);
        weighted += term;
        size += std::fabs(term);
      }
      CHECK_NEAR(mse[t * rows + a], squares, 2e-6 * squares);
      CHECK_NEAR(kl[t * rows + a], weighted, 2e-6 * size);
    }
  for (int threads : kThreads) {
    std::vector<double> again(rows * rows, 0.0), again_kl(rows * rows, 0.0);
    mnmt::pair_sums(x.data(), rows, n, eps, again.data(), again_kl.data(), threads);
    CHECK(again == mse && again_kl == kl);
  }
}

// One column, rows 1 and x: kl[0, 1] = x log(x). The logarithm is right to 2^-23, and each of the two roundings of a
// product or a conversion adds 2^-24 of it.
void test_logarithm() {
  const float eps = std::numeric_limits<float>::min();
  const auto check = [&](float x) {
    const float column[2] = {1.0f, x};
    double mse[4] = {}, kl[4] = {};
    mnmt::pair_sums(column, 2, 1, eps, mse, kl, 1);
    const double truth = std::log(static_cast<double>(x) + eps);
    CHECK_NEAR(kl[1] / x, truth, std::ldexp(1.0, -23) + std::ldexp(std::fabs(truth), -23));
  };
  for (float x = 1e-37f; x < 1e37f; x *= 1.037f) check(x);
  for (int i = -2000; i <= 2000; ++i) check(1.0f + static_cast<float>(i) * 2e-4f);
  check(eps);
  check(std::nextafter(1.0f, 0.0f));
  check(std::nextafter(1.0f, 2.0f));
}

}  // namespace

int main() {
  for (const auto& isa : mnmt::available_isas()) {
    mnmt::set_isa(isa);
    for (Size n : {0, 1, 7, 15, 16, 63, 64, 65, 511, 513, 8193, 70001}) {
      for (Size rows : {1, 2, 3}) {
        test_histogram(rows, std::max<Size>(n, 1));
        test_between(rows, n, -0.1f, 0.2f);
        test_between(rows, n, 0.0f, 0.0f);
        test_masks(rows, n);
        test_pair_sums(rows, n);
      }
    }
    test_histogram(1, (1 << 18) + 3);
    test_masks(7, 40001);
    test_between_reports();
    test_logarithm();
  }
}

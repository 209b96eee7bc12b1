// Histograms, masks, overlaps and sums over pairs against plain loops.
#include <algorithm>
#include <random>
#include <vector>

#include "cuda/similarity.cu"
#include "tests/check.h"

namespace {

namespace cuda = mnmt::cuda;
using Ints = std::vector<std::int64_t>;

enum class Values { signed_normal, positive, few };

std::vector<float> make(std::int64_t count, Values kind, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal(0.1, 1.0);
  std::vector<float> x(count);
  for (float& v : x) {
    const double y = normal(random);
    v = static_cast<float>(kind == Values::positive ? y * y * 1e-4 : y);
    if (kind == Values::few) v = y > 0.3 ? 0.0f : y > 0.0 ? -0.0f : 2.0f;
  }
  return x;
}

std::uint32_t key_of(float x) {
  const std::uint32_t bits = __float_as_uint(x);
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

void check_histogram(std::int64_t rows, std::int64_t n, Values kind) {
  const std::vector<float> x = make(rows * n, kind, 3 + n);
  for (int level = 0; level < 3; ++level) {
    Ints prefix(rows, 0), histogram(rows * 2048, 7), expected = histogram;
    for (std::int64_t r = 0; r < rows; ++r) {
      if (n && level) prefix[r] = key_of(x[r * n + n / 2]) >> (level == 1 ? 21 : 10);
      for (std::int64_t i = 0; i < n; ++i) {
        const std::uint32_t key = key_of(x[r * n + i]);
        if (level == 0) ++expected[r * 2048 + (key >> 21)];
        if (level == 1 && key >> 21 == prefix[r]) ++expected[r * 2048 + (key >> 10) % 2048];
        if (level == 2 && key >> 10 == prefix[r]) ++expected[r * 2048 + key % 1024];
      }
    }
    cuda::radix_histogram(x.data(), rows, n, prefix.data(), level, histogram.data(), nullptr);
    CHECK(histogram == expected);
  }
}

void check_masks(std::int64_t rows, std::int64_t n) {
  const std::vector<float> x = make(rows * n, Values::signed_normal, n);
  const std::int64_t words = (n + 63) / 64;
  std::vector<float> thresholds;
  for (std::int64_t r = 0; r < rows; ++r)  // one that occurs, one that nothing reaches, one that all do
    thresholds.push_back(n == 0 ? 0.0f : r % 3 == 0 ? x[r * n + n / 2] : r % 3 == 1 ? 1e9f : -1e9f);
  Ints masks(rows * words, -1), expected(rows * words, 0);
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t i = 0; i < n; ++i)
      if (x[r * n + i] >= thresholds[r]) expected[r * words + i / 64] |= std::int64_t{1} << (i % 64);
  cuda::pack_masks(x.data(), rows, n, thresholds.data(), masks.data(), nullptr);
  CHECK(masks == expected);
}

void check_overlap(std::int64_t rows, std::int64_t words) {
  std::mt19937_64 random(rows + words);
  Ints masks(rows * words);
  for (std::int64_t& mask : masks) mask = static_cast<std::int64_t>(random());
  Ints counts(rows * rows, 5), expected = counts;
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = 0; j < rows; ++j)
      for (std::int64_t w = 0; w < words; ++w)
        expected[i * rows + j] += __builtin_popcountll(masks[i * words + w] & masks[j * words + w]);
  cuda::mask_overlap(masks.data(), rows, words, counts.data(), nullptr);
  CHECK(counts == expected);
}

// `magnitude`, a power of two: Fisher values are means of squared gradients and may be as small as 1e-24.
void check_pairs(std::int64_t rows, std::int64_t n, float magnitude = 1.0f) {
  const float eps = 1e-8f * magnitude;
  std::vector<float> x = make(rows * n, Values::positive, n + rows);
  for (float& value : x) value *= magnitude;
  if (rows > 1) std::copy_n(x.begin(), n / 2, x.begin() + n);  // two rows nearly alike
  const double before = 0.5 * magnitude * magnitude;
  std::vector<double> mse(rows * rows, before), kl = mse;
  const auto run = [&](std::vector<double>* m, std::vector<double>* k) {
    std::vector<double> workspace(cuda::pair_sums_workspace_size(rows, n), std::nan(""));
    cuda::pair_sums(x.data(), rows, n, eps, 1.0f / magnitude, workspace.data(), m->data(), k->data(), nullptr);
  };
  emulation::reversed() = false;
  run(&mse, &kl);
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < rows; ++j) {
      double m = before, k = before, size = 0;
      for (std::int64_t p = 0; p < n; ++p) {
        const double a = x[i * n + p], b = x[j * n + p];
        const double term = b * (std::log(b + eps) - std::log(a + eps));
        m += (a - b) * (a - b), k += term, size += std::fabs(term) + b;  // fp32 logarithms are off by about 1e-6
      }
      CHECK_NEAR(mse[i * rows + j], m, 1e-6 * (m - before) + 2e-15 * before);
      CHECK_NEAR(kl[i * rows + j], k, 3e-6 * size + 2e-15 * before);
    }
  }
  emulation::reversed() = true;
  std::vector<double> mse_again(rows * rows, before), kl_again = mse_again;
  run(&mse_again, &kl_again);
  CHECK(mse_again == mse && kl_again == kl);
}

}  // namespace

int main() {
  for (bool reversed : {false, true}) {
    emulation::reversed() = reversed;
    for (std::int64_t n : {0, 1, 7, 63, 5001})
      for (Values kind : {Values::signed_normal, Values::positive, Values::few}) check_histogram(3, n, kind);
    check_histogram(1, 65537, Values::positive);
    check_histogram(13, 131500, Values::few);  // two blocks a row, more than run at once
    for (std::int64_t n : {0, 1, 7, 63, 64, 65, 512, 4097}) check_masks(4, n);
    check_masks(1, 20001);
    for (std::int64_t rows : {1, 3, 40})
      for (std::int64_t words : {0, 1, 7, 129}) check_overlap(rows, words);
    check_overlap(33, 2050);
  }
  check_histogram(0, 5, Values::few);
  for (std::int64_t rows : {1, 2, 5, 16, 17})
    for (std::int64_t n : {0, 1, 7, 63, 300}) check_pairs(rows, n);
  for (std::int64_t rows : {9, 23, 28, 45}) check_pairs(rows, 131);  // every number of quarters in the last tile
  check_pairs(3, 9001);
  check_pairs(3, 300, std::ldexp(1.0f, -80));
  check_pairs(3, 300, std::ldexp(1.0f, 80));
}

// The CUDA kernels of task_gram and fisher_accumulate, emulated, against plain loops in double: every type, number of
// tasks, alignment, weighting, combination. Each fragment is an allocation of its own, so that the address sanitizer
// sees a step beyond its end, at any misalignment, with NaN before its start.
#include <cstdlib>
#include <limits>
#include <memory>
#include <vector>

#include "cuda/fisher_accumulate.cu"
#include "cuda/task_gram.cu"
#include "tests/check.h"

namespace {

using mnmt::bf16;
using mnmt::Dtype;
using mnmt::f16;

template <class T>
constexpr Dtype dtype_of = Dtype::f32;
template <>
inline constexpr Dtype dtype_of<bf16> = Dtype::bf16;
template <>
inline constexpr Dtype dtype_of<f16> = Dtype::f16;

template <class T>
double value(T x) {
  const mnmt::cuda::Granule<T> granule = {{mnmt::cuda::bits_of(x), 0, 0, 0}};
  return mnmt::cuda::element(granule, 0);
}

// Roughly normal, mean 0.1.
inline double normal(std::uint64_t& seed) {
  double sum = 0.1;
  for (int i = 0; i < 4; ++i) {
    seed = seed * 6364136223846793005ull + 1442695040888963407ull;
    sum += (static_cast<double>(seed >> 40) / (1 << 24) - 0.5) * 1.7320508;
  }
  return sum;
}

template <class T>
struct Fragment {
  std::unique_ptr<char, decltype(&std::free)> memory{nullptr, &std::free};
  T* data = nullptr;
  std::int64_t n = 0;

  Fragment(std::int64_t n_, int misaligned, std::uint64_t& seed, bool positive = false) : n(n_) {
    memory.reset(static_cast<char*>(std::malloc((n + misaligned) * sizeof(T) + (n + misaligned == 0))));
    data = reinterpret_cast<T*>(memory.get()) + misaligned;
    for (int i = -misaligned; i < 0; ++i) mnmt::cuda::narrow(std::numeric_limits<float>::quiet_NaN(), data + i);
    for (std::int64_t i = 0; i < n; ++i) {
      const double x = normal(seed);
      mnmt::cuda::narrow(static_cast<float>(positive ? x * x + 0.01 : x), data + i);
    }
  }
  std::int64_t address() const { return n ? reinterpret_cast<std::int64_t>(data) : 0; }  // torch says 0 for no elements
};

// -------------------------------------------------------------------------------------------------------- task_gram

using Lengths = std::vector<std::int64_t>;

enum class Alignment { whole, alike, mixed };

int misalignment(Alignment alignment, std::int64_t task, std::int64_t fragment) {
  if (alignment == Alignment::whole) return 0;
  return static_cast<int>(alignment == Alignment::alike ? (fragment * 3 + 1) % 8 : (fragment + task * 3) % 8);
}

template <class T>
struct Case {
  std::vector<Fragment<T>> gradients, combination;
  std::vector<Fragment<float>> diagonal;
  std::vector<float> coefficients;
  mnmt::cuda::Gram gram;
  Lengths lengths;

  Case(std::int64_t tasks, const Lengths& lengths_, Alignment alignment, bool weighted, bool combined)
      : gram{dtype_of<T>, tasks, static_cast<std::int64_t>(lengths_.size()), weighted, combined}, lengths(lengths_) {
    std::uint64_t seed = 17 + tasks;
    const std::int64_t fragments = gram.fragments;
    for (std::int64_t k = 0; k < tasks; ++k) {
      for (std::int64_t f = 0; f < fragments; ++f)
        gradients.emplace_back(lengths[f], misalignment(alignment, k, f), seed);
      coefficients.push_back(static_cast<float>(normal(seed)));
    }
    for (std::int64_t f = 0; f < fragments; ++f) {
      if (weighted) diagonal.emplace_back(lengths[f], misalignment(alignment, 5, f), seed, true);
      if (combined) combination.emplace_back(lengths[f], misalignment(alignment, 0, f), seed);
    }
  }

  template <class F>
  static std::vector<std::int64_t> addresses(const std::vector<F>& fragments) {
    std::vector<std::int64_t> out;
    for (const F& fragment : fragments) out.push_back(fragment.address());
    return out;
  }

  std::vector<double> run() {
    namespace cuda = mnmt::cuda;
    std::vector<std::int64_t> table(cuda::gram_table_size(gram));
    const auto g = addresses(gradients), w = addresses(diagonal), c = addresses(combination);
    const std::int64_t chunks =
        cuda::gram_plan(gram, g.data(), lengths.data(), w.data(), c.data(), coefficients.data(), table.data());
    std::vector<double> workspace(cuda::gram_workspace_size(gram, chunks), std::nan(""));
    std::vector<double> out(gram.tasks * gram.tasks, std::nan(""));
    cuda::task_gram(gram, table.data(), chunks, workspace.data(), out.data(), nullptr);
    return out;
  }

  double truth(std::int64_t i, std::int64_t j) const {
    double sum = 0;
    for (std::int64_t f = 0; f < gram.fragments; ++f)
      for (std::int64_t p = 0; p < lengths[f]; ++p)
        sum += value(gradients[i * gram.fragments + f].data[p]) * value(gradients[j * gram.fragments + f].data[p]) *
               (gram.diagonal ? diagonal[f].data[p] : 1.0f);
    return sum;
  }

  void check_combination() const {
    const double rounding = sizeof(T) == 4 ? 1e-6 : dtype_of<T> == Dtype::bf16 ? 0x1p-8 : 0x1p-11;
    for (std::int64_t f = 0; f < gram.fragments; ++f) {
      for (std::int64_t p = 0; p < lengths[f]; ++p) {
        double sum = 0, size = 0;
        for (std::int64_t k = 0; k < gram.tasks; ++k) {
          const double term = coefficients[k] * value(gradients[k * gram.fragments + f].data[p]);
          sum += term, size += std::fabs(term);
        }
        CHECK_NEAR(value(combination[f].data[p]), sum, rounding * std::fabs(sum) + 1e-6 * size);
      }
    }
  }

  void check() {
    emulation::reversed() = false;
    const std::vector<double> out = run();
    const std::int64_t tasks = gram.tasks;
    for (std::int64_t i = 0; i < tasks; ++i) {
      for (std::int64_t j = 0; j <= i; ++j) {
        CHECK_NEAR(out[i * tasks + j], truth(i, j), 2e-6 * std::sqrt(truth(i, i) * truth(j, j)));
        CHECK(out[j * tasks + i] == out[i * tasks + j]);
      }
    }
    if (gram.combination) check_combination();
    emulation::reversed() = true;
    CHECK(run() == out);
  }
};

template <class T>
void check_gram() {
  const Lengths small = {0, 1, 7, 63, 0, 2500, 0}, flat = {65537};
  for (std::int64_t tasks : {1, 2, 3, 5, 8, 16, 17})
    for (bool weighted : {false, true})
      for (bool combined : {false, true})
        Case<T>(tasks, small, weighted != combined ? Alignment::alike : Alignment::mixed, weighted, combined).check();
  for (std::int64_t tasks : {2, 3, 8}) Case<T>(tasks, flat, Alignment::whole, tasks == 3, tasks == 2).check();
  Case<T>(16, {20011}, Alignment::whole, false, true).check();
  Case<T>(3, {0, 0}, Alignment::whole, true, true).check();
}

// ------------------------------------------------------------------------------------------------ fisher_accumulate

template <class T>
void check_accumulation(const std::vector<std::int64_t>& lengths, int misaligned_fisher, int misaligned_gradients,
                        float scale) {
  namespace cuda = mnmt::cuda;
  std::uint64_t seed = 5;
  std::vector<Fragment<float>> fisher;
  std::vector<Fragment<T>> gradients;
  std::vector<std::int64_t> f, g;
  std::vector<std::vector<float>> before;
  for (std::int64_t n : lengths) {
    fisher.emplace_back(n, misaligned_fisher, seed, true);
    gradients.emplace_back(n, misaligned_gradients, seed);
    before.emplace_back(fisher.back().data, fisher.back().data + n);
    f.push_back(fisher.back().address());
    g.push_back(gradients.back().address());
  }
  const std::int64_t fragments = static_cast<std::int64_t>(lengths.size());
  std::vector<std::int64_t> table(cuda::fisher_table_size(fragments));
  const std::int64_t chunks =
      cuda::fisher_plan(dtype_of<T>, fragments, f.data(), g.data(), lengths.data(), table.data());
  cuda::fisher_accumulate(dtype_of<T>, fragments, table.data(), chunks, scale, nullptr);
  for (std::int64_t i = 0; i < fragments; ++i) {
    for (std::int64_t p = 0; p < lengths[i]; ++p) {
      const double x = value(gradients[i].data[p]), truth = before[i][p] + static_cast<double>(scale) * x * x;
      CHECK_NEAR(fisher[i].data[p], truth, 3e-7 * (std::fabs(truth) + std::fabs(scale * x * x)));
    }
  }
}

template <class T>
void check_fisher() {
  const std::vector<std::int64_t> ragged = {0, 1, 7, 63, 0, 9000, 0};
  for (int a = 0; a < 4; ++a)
    for (int b = 0; b < 8; ++b) check_accumulation<T>(ragged, a, b, 0.25f);
  check_accumulation<T>({65537}, 0, 0, -2.0f);
  check_accumulation<T>({0}, 0, 0, 1.0f);
}

template <class T>
void check_type() {
  check_gram<T>();
  check_fisher<T>();
}

}  // namespace

int main() {
  check_type<float>();
  check_type<bf16>();
  check_type<f16>();
}

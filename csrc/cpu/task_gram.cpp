#include "mnmt/task_gram.h"

#include <algorithm>
#include <new>

#include "cpu/task_gram_items.h"
#include "cpu/task_gram_kernels.h"
#include "mnmt/isa.h"
#include "mnmt/parallel.h"

namespace mnmt {

MNMT_PER_ISA(GramKernels, gram_kernels)

namespace {

// An item has this many elements; more where the sums of all items would otherwise take more than kSumsBytes.
constexpr std::int64_t kItem = 1 << 16;
constexpr std::int64_t kSumsBytes = 32 << 20;

template <class T>
class Buffer {  // on cache lines, not initialised
 public:
  explicit Buffer(std::int64_t n) : data_(static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t(64)))) {}
  ~Buffer() { ::operator delete(data_, std::align_val_t(64)); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* data() const { return data_; }

 private:
  T* data_;
};

class Item {  // its sums, and the memory to make them with
 public:
  Item(const TaskGram& problem, const GramKernels& kernels)
      : problem_(problem),
        kernels_(kernels),
        tile_(kernels.tile_elements(problem.dtype, problem.tasks, !problem.diagonal.empty())),
        sums_(kernels.sums_size(problem.tasks)),
        staged_(kernels.staged_size(problem.tasks, tile_)),
        rows_((problem.tasks + kGramPadding - 1) / kGramPadding * kGramPadding),
        staged_rows_(rows_.size()) {
    std::fill_n(sums_.data(), kernels.sums_size(problem.tasks), 0.0);
  }

  // Elements [begin, end) of one fragment.
  void add(std::size_t fragment, std::int64_t begin, std::int64_t end) {
    const std::int64_t bytes = bytes_of(problem_.dtype), fragments = problem_.sizes.size();
    for (std::int64_t i = begin; i < end; i += tile_) {
      for (std::size_t k = 0; k < rows_.size(); ++k) {
        const std::int64_t task = std::min<std::int64_t>(k, problem_.tasks - 1);
        rows_[k] = static_cast<const char*>(problem_.gradients[task * fragments + fragment]) + i * bytes;
      }
      GramTile tile{problem_.dtype, problem_.tasks, std::min(tile_, end - i), rows_.data(), nullptr, nullptr, nullptr};
      if (!problem_.diagonal.empty()) tile.weights = problem_.diagonal[fragment] + i;
      if (!problem_.combination.empty()) {
        tile.coefficients = problem_.coefficients.data();
        tile.combination = static_cast<char*>(problem_.combination[fragment]) + i * bytes;
      }
      kernels_.add_tile(tile, {sums_.data(), staged_.data(), staged_rows_.data()});
    }
  }

  void pairs(double* out) const { kernels_.pairs(sums_.data(), problem_.tasks, out); }

 private:
  const TaskGram& problem_;
  const GramKernels& kernels_;
  const std::int64_t tile_;
  Buffer<double> sums_;
  Buffer<float> staged_;
  std::vector<const void*> rows_;
  std::vector<const float*> staged_rows_;
};

std::int64_t item_elements(const TaskGram& problem, std::int64_t pairs) {
  std::int64_t total = 0;
  for (const std::int64_t size : problem.sizes) total += size;
  const std::int64_t most_items = std::max<std::int64_t>(1, kSumsBytes / (pairs * sizeof(double)));
  return std::max(kItem, (total + most_items - 1) / most_items);
}

}  // namespace

void task_gram(const TaskGram& problem, double* gram, int threads) {
  const auto& kernels = gram_kernels_per_isa.active();
  const std::int64_t K = problem.tasks, pairs = K * (K + 1) / 2;
  const Items items(problem.sizes, item_elements(problem, pairs));
  std::vector<double> sums(items.count() * pairs);
  parallel_for(items.count(), threads, [&](std::int64_t i) {
    Item item(problem, kernels);
    items.walk(i, [&](std::size_t f, std::int64_t begin, std::int64_t end) { item.add(f, begin, end); });
    item.pairs(&sums[i * pairs]);
  });
  std::int64_t pair = 0;
  for (std::int64_t i = 0; i < K; ++i)
    for (std::int64_t j = i; j < K; ++j, ++pair)
      gram[i * K + j] = gram[j * K + i] =
          tree_sum(0, items.count(), [&](std::int64_t item) { return sums[item * pairs + pair]; });
}

}  // namespace mnmt

#include "mnmt/fisher_accumulate.h"

#include "cpu/fisher_accumulate_kernels.h"
#include "cpu/task_gram_items.h"
#include "mnmt/isa.h"
#include "mnmt/parallel.h"

namespace mnmt {

MNMT_PER_ISA(FisherKernels, fisher_kernels)

void fisher_accumulate(const FisherAccumulate& problem, int threads) {
  const auto& kernels = fisher_kernels_per_isa.active();
  const std::int64_t bytes = bytes_of(problem.dtype);
  const Items items(problem.sizes, 1 << 16);
  parallel_for(items.count(), threads, [&](std::int64_t i) {
    items.walk(i, [&](std::size_t f, std::int64_t begin, std::int64_t end) {
      kernels.accumulate(problem.fisher[f] + begin, static_cast<const char*>(problem.gradients[f]) + begin * bytes,
                         problem.dtype, problem.scale, end - begin);
    });
  });
}

}  // namespace mnmt

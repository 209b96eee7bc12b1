// Loops over threads. The number of threads is an argument of every op (torch's own setting, passed from Python), and
// no result depends on it: work is cut into items of fixed size, and items are combined in fixed order afterwards.
#pragma once

#include <cstdint>
#include <exception>

namespace mnmt {

// body(i) for i in [0, n), in any order, on up to `threads` threads; one of the exceptions, if there are any, is
// rethrown.
template <class Body>
void parallel_for(std::int64_t n, int threads, const Body& body) {
  std::exception_ptr failure;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1 && n > 1)
  for (std::int64_t i = 0; i < n; ++i) {
    try {
      body(i);
    } catch (...) {
#pragma omp critical(mnmt_parallel_for)
      failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

// The sum of n terms term(0) .. term(n - 1) as a balanced tree: the same bits whoever computed the terms.
template <class Term>
double tree_sum(std::int64_t begin, std::int64_t end, const Term& term) {
  if (end - begin <= 0) return 0.0;
  if (end - begin == 1) return term(begin);
  const std::int64_t middle = begin + (end - begin) / 2;
  return tree_sum(begin, middle, term) + tree_sum(middle, end, term);
}

}  // namespace mnmt

// fisher_similarity: values [rows, n] fp32 and everything else by address; shapes as mnmt/fisher_similarity.h has them.
#include "bind.h"
#include "mnmt/fisher_similarity.h"

namespace mnmt {

void bind_similarity(pybind11::module_& m) {
  using Size = std::int64_t;
  const pybind11::call_guard<pybind11::gil_scoped_release> unlocked;
  m.def(
      "radix_histogram",
      [](Address values, Size rows, Size n, Address prefix, int level, Address histogram, int threads) {
        radix_histogram(at<const float>(values), rows, n, at<const Size>(prefix), level, at<Size>(histogram), threads);
      },
      unlocked, "histogram [rows, 2048] int64 += one level of radix keys");
  m.def(
      "collect_between",
      [](Address values, Size rows, Size n, Address low, Address high, Address counts, Address candidates,
         Size capacity, Address sizes, int threads) {
        collect_between(at<const float>(values), rows, n, at<const float>(low), at<const float>(high), at<Size>(counts),
                        at<float>(candidates), capacity, at<Size>(sizes), threads);
      },
      unlocked, "counts [rows, 5] += against low and high; candidates [rows, capacity] between them are appended");
  m.def(
      "pack_masks",
      [](Address values, Size rows, Size n, Address thresholds, Address masks, int threads) {
        pack_masks(at<const float>(values), rows, n, at<const float>(thresholds), at<std::uint64_t>(masks), threads);
      },
      unlocked, "masks [rows, ceil(n / 64)]: bits of values >= threshold");
  m.def(
      "mask_overlap",
      [](Address masks, Size rows, Size words, Address counts, int threads) {
        mask_overlap(at<const std::uint64_t>(masks), rows, words, at<Size>(counts), threads);
      },
      unlocked, "counts [rows, rows] int64 += bits in common");
  m.def(
      "pair_sums",
      [](Address values, Size rows, Size n, float eps, Address mse, Address kl, int threads) {
        pair_sums(at<const float>(values), rows, n, eps, at<double>(mse), at<double>(kl), threads);
      },
      unlocked, "mse and kl [rows, rows] fp64 += sums over all pairs of rows");
}

}  // namespace mnmt

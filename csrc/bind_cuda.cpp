// CUDA kernels over the parameters, for mnmt_scale/kernels/native_cuda.py. Nothing where the module was built without.
#include "bind.h"

#if defined(MNMT_WITH_CUDA)

#include "mnmt/cuda.h"

namespace mnmt {
namespace {

namespace py = pybind11;
using Addresses = std::vector<std::int64_t>;
using Release = py::call_guard<py::gil_scoped_release>;

void* stream_at(Address stream) { return reinterpret_cast<void*>(stream); }

cuda::Gram gram_of(int dtype, std::int64_t tasks, std::int64_t fragments, bool diagonal, bool combination) {
  return {static_cast<Dtype>(dtype), tasks, fragments, diagonal, combination};
}

void bind_gram(py::module_& m) {
  m.def("cuda_gram_table_size", [](std::int64_t tasks, std::int64_t fragments, bool diagonal, bool combination) {
    return cuda::gram_table_size(gram_of(0, tasks, fragments, diagonal, combination));
  });
  m.def(
      "cuda_gram_plan",
      [](int dtype, std::int64_t tasks, const Addresses& gradients, const Addresses& lengths, const Addresses& diagonal,
         const Addresses& combination, const std::vector<float>& coefficients, Address table) {
        const auto gram =
            gram_of(dtype, tasks, static_cast<std::int64_t>(lengths.size()), !diagonal.empty(), !combination.empty());
        return cuda::gram_plan(gram, gradients.data(), lengths.data(), diagonal.data(), combination.data(),
                               coefficients.data(), at<std::int64_t>(table));
      },
      Release(), "fills the table in host memory; returns the number of chunks");
  m.def("cuda_gram_workspace_size", [](std::int64_t tasks, std::int64_t chunks) {
    return cuda::gram_workspace_size(gram_of(0, tasks, 0, false, false), chunks);
  });
  m.def(
      "cuda_task_gram",
      [](int dtype, std::int64_t tasks, std::int64_t fragments, bool diagonal, bool combination, Address table,
         std::int64_t chunks, Address workspace, Address out, Address stream) {
        cuda::task_gram(gram_of(dtype, tasks, fragments, diagonal, combination), at<const std::int64_t>(table), chunks,
                        at<double>(workspace), at<double>(out), stream_at(stream));
      },
      Release());
}

void bind_fisher(py::module_& m) {
  m.def("cuda_fisher_table_size", &cuda::fisher_table_size);
  m.def(
      "cuda_fisher_plan",
      [](int dtype, const Addresses& fisher, const Addresses& gradients, const Addresses& lengths, Address table) {
        return cuda::fisher_plan(static_cast<Dtype>(dtype), static_cast<std::int64_t>(lengths.size()), fisher.data(),
                                 gradients.data(), lengths.data(), at<std::int64_t>(table));
      },
      Release(), "fills the table in host memory; returns the number of chunks");
  m.def(
      "cuda_fisher_accumulate",
      [](int dtype, std::int64_t fragments, Address table, std::int64_t chunks, float scale, Address stream) {
        cuda::fisher_accumulate(static_cast<Dtype>(dtype), fragments, at<const std::int64_t>(table), chunks, scale,
                                stream_at(stream));
      },
      Release());
}

void bind_pairs(py::module_& m) {
  m.def(
      "cuda_radix_histogram",
      [](Address values, std::int64_t rows, std::int64_t n, Address prefix, int level, Address histogram,
         Address stream) {
        cuda::radix_histogram(at<const float>(values), rows, n, at<const std::int64_t>(prefix), level,
                              at<std::int64_t>(histogram), stream_at(stream));
      },
      Release());
  m.def(
      "cuda_pack_masks",
      [](Address values, std::int64_t rows, std::int64_t n, Address thresholds, Address masks, Address stream) {
        cuda::pack_masks(at<const float>(values), rows, n, at<const float>(thresholds), at<std::int64_t>(masks),
                         stream_at(stream));
      },
      Release());
  m.def(
      "cuda_mask_overlap",
      [](Address masks, std::int64_t rows, std::int64_t words, Address counts, Address stream) {
        cuda::mask_overlap(at<const std::int64_t>(masks), rows, words, at<std::int64_t>(counts), stream_at(stream));
      },
      Release());
  m.def("cuda_pair_sums_workspace_size", &cuda::pair_sums_workspace_size);
  m.def(
      "cuda_pair_sums",
      [](Address values, std::int64_t rows, std::int64_t n, float eps, float scale, Address workspace, Address mse,
         Address kl, Address stream) {
        cuda::pair_sums(at<const float>(values), rows, n, eps, scale, at<double>(workspace), at<double>(mse),
                        at<double>(kl), stream_at(stream));
      },
      Release());
}

}  // namespace

void bind_cuda(py::module_& m) {
  m.def("cuda_problem", &cuda::problem);
  bind_gram(m);
  bind_fisher(m);
  bind_pairs(m);
}

}  // namespace mnmt

#else

namespace mnmt {

void bind_cuda(pybind11::module_&) {}

}  // namespace mnmt

#endif

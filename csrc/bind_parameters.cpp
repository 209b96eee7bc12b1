#include "bind.h"
#include "mnmt/fisher_accumulate.h"
#include "mnmt/task_gram.h"

namespace py = pybind11;

namespace mnmt {
namespace {

template <class T>
std::vector<T*> all_at(const std::vector<Address>& addresses) {
  std::vector<T*> pointers;
  pointers.reserve(addresses.size());
  for (const Address address : addresses) pointers.push_back(at<T>(address));
  return pointers;
}

}  // namespace

void bind_parameters(py::module_& m) {
  m.def(
      "task_gram",
      [](const std::vector<Address>& gradients, std::vector<std::int64_t> sizes, int tasks, int dtype,
         const std::vector<Address>& diagonal, std::vector<float> coefficients, const std::vector<Address>& combination,
         Address gram, int threads) {
        const TaskGram problem{static_cast<Dtype>(dtype),
                               tasks,
                               std::move(sizes),
                               all_at<const void>(gradients),
                               all_at<const float>(diagonal),
                               std::move(coefficients),
                               all_at<void>(combination)};
        task_gram(problem, at<double>(gram), threads);
      },
      py::arg("gradients"), py::arg("sizes"), py::arg("tasks"), py::arg("dtype"), py::arg("diagonal"),
      py::arg("coefficients"), py::arg("combination"), py::arg("gram"), py::arg("threads"),
      py::call_guard<py::gil_scoped_release>(),
      "[K, K] fp64 inner products of K gradients, task-major lists of fragments; see mnmt/task_gram.h");
  m.def(
      "fisher_accumulate",
      [](const std::vector<Address>& fisher, const std::vector<Address>& gradients, std::vector<std::int64_t> sizes,
         int dtype, float scale, int threads) {
        const FisherAccumulate problem{static_cast<Dtype>(dtype), std::move(sizes), all_at<float>(fisher),
                                       all_at<const void>(gradients), scale};
        fisher_accumulate(problem, threads);
      },
      py::arg("fisher"), py::arg("gradients"), py::arg("sizes"), py::arg("dtype"), py::arg("scale"), py::arg("threads"),
      py::call_guard<py::gil_scoped_release>(),
      "F += scale * g^2 over a list of fragments; see mnmt/fisher_accumulate.h");
}

}  // namespace mnmt

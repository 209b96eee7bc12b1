// The Python module mnmt_scale._C. Every call takes addresses, sizes, element types and a number of threads (CPU) or a
// stream (CUDA), and runs without the interpreter's lock.
#include "bind.h"

#include "mnmt/bandwidth.h"
#include "mnmt/isa.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of mnmt_scale: raw pointers in and out.";
#if defined(MNMT_WITH_CUDA)
  m.attr("cuda") = true;
#else
  m.attr("cuda") = false;
#endif
  m.def("isa", [] { return mnmt::name(mnmt::active_isa()); }, "instruction set in use");
  m.def("available_isas", &mnmt::available_isas, "instruction sets that can run here, worst first");
  m.def("set_isa", &mnmt::set_isa, "use this instruction set from now on (tests and comparisons)");
  m.def(
      "read_stream",
      [](mnmt::Address data, std::int64_t n, int threads) {
        return mnmt::read_stream(mnmt::at<const float>(data), n, threads);
      },
      py::call_guard<py::gil_scoped_release>(), "sum of n floats, as fast as memory is read");
  mnmt::bind_parameters(m);
  mnmt::bind_similarity(m);
  mnmt::bind_rows(m);
  mnmt::bind_cuda(m);
}

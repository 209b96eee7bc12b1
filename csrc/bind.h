// How the families of ops enter the Python module: each has a bind_<family>.cpp.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>

namespace mnmt {

// Addresses travel as integers: the callers (mnmt_scale/kernels/ops) have checked shapes, types and devices.
using Address = std::uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

void bind_parameters(pybind11::module_& m);  // task_gram, fisher_accumulate
void bind_similarity(pybind11::module_& m);  // radix selection, masks, all-pairs similarity
void bind_rows(pybind11::module_& m);        // rows over the vocabulary
void bind_cuda(pybind11::module_& m);        // all over parameters, on CUDA devices

}  // namespace mnmt

#include "bind.h"

namespace mnmt {

void bind_parameters(pybind11::module_&) {}

}  // namespace mnmt

#include "bind.h"

namespace mnmt {

void bind_rows(pybind11::module_&) {}

}  // namespace mnmt

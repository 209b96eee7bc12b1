#include "bind.h"

namespace mnmt {

void bind_similarity(pybind11::module_&) {}

}  // namespace mnmt

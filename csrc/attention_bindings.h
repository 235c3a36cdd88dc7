// The numpy face of attention.
#pragma once

#include <pybind11/pybind11.h>

namespace vkrt {

void define_attention(pybind11::module_& module);

}  // namespace vkrt

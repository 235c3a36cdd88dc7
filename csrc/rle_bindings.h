// The numpy face of run lengths and boxes.
#pragma once

#include <pybind11/pybind11.h>

namespace vkrt {

void define_rle(pybind11::module_& module);

}  // namespace vkrt

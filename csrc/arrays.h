// Checks of numpy arrays and sizes that come from Python, each refusal one line.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "extent.h"
#include "planes.h"
#include "tally.h"

namespace vkrt {

namespace py = pybind11;

// Throws py::type_error or py::value_error unless the array has the dtype, the number of
// dimensions and no gaps. `name` is what messages call it.
template <typename T>
void check_layout(const py::array& array, const char* name, int dimensions) {
    const std::string label(name);
    if (!py::isinstance<py::array_t<T>>(array)) {
        throw py::type_error(label + " must be " + py::str(py::dtype::of<T>()).cast<std::string>() +
                             ", not " + py::str(array.dtype()).cast<std::string>());
    }
    if (array.ndim() != dimensions) {
        throw py::value_error(label + " must have " + std::to_string(dimensions) +
                              " dimensions, not " + std::to_string(array.ndim()));
    }
    constexpr int wanted = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
    if ((array.flags() & wanted) != wanted) {
        throw py::value_error(label + " must be contiguous; pass numpy.ascontiguousarray of it");
    }
}

// As check_layout, for three dimensions of which none is empty.
template <typename T>
void check_planes(const py::array& array, const char* name) {
    check_layout<T>(array, name, 3);
    checked_product({array.shape(0), array.shape(1), array.shape(2)}, sizeof(T));
}

// Throws as check_layout unless the array has the dtype and rows, along its last axis, without gaps.
template <typename T>
void check_rows(const py::array& array, const char* name) {
    const std::string label(name);
    if (!py::isinstance<py::array_t<T>>(array)) {
        throw py::type_error(label + " must be " + py::str(py::dtype::of<T>()).cast<std::string>() +
                             ", not " + py::str(array.dtype()).cast<std::string>());
    }
    constexpr auto size = static_cast<py::ssize_t>(sizeof(T));
    constexpr int aligned = py::detail::npy_api::NPY_ARRAY_ALIGNED_;
    const py::ssize_t last = array.ndim() - 1;
    const bool is_dense = array.shape(last) <= 1 || array.strides(last) == size;
    if (!is_dense || (array.flags() & aligned) != aligned) {
        throw py::value_error(label + " must have rows without gaps; pass numpy.ascontiguousarray "
                                      "of it");
    }
}

// The bytes of numpy's bool are 0 and 1.
template <typename T, typename Item = T>
Planes<const Item> view_planes(const py::array& array) {
    return {static_cast<const Item*>(array.data()), static_cast<int>(array.shape(0)),
            static_cast<int>(array.shape(1)), static_cast<int>(array.shape(2))};
}

// Return three dimensions of float32.
Logits view_logits(const py::array& logits);

// Return three dimensions of bool, each plane of fewer than 2^31 pixels.
Planes<const std::uint8_t> view_masks(const py::array& masks);

// Return the size of `count` pictures that are to be made.
// Throws std::invalid_argument where a side is below 1 or beyond 2^24, or all are too large.
Size checked_size(std::ptrdiff_t count, std::ptrdiff_t height, std::ptrdiff_t width,
                  std::ptrdiff_t item_bytes);

// Throws py::value_error where a picture has 2^31 pixels or more.
void check_pixels(std::ptrdiff_t height, std::ptrdiff_t width);

int checked_threads(int threads);

// Return areas (N,) int64, stability (N,) float32 and boxes (N, 4) float32.
py::tuple areas_stability_boxes(const std::vector<Tally>& tallies);
py::array_t<std::int64_t> areas_of(const std::vector<Tally>& tallies);
py::array_t<float> boxes_of(const std::vector<Tally>& tallies);

}  // namespace vkrt

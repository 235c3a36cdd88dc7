// The numpy face of csrc: checks shapes, dtypes and layout, allocates, and releases the GIL.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "components.h"
#include "extent.h"
#include "masks.h"
#include "resize.h"

namespace py = pybind11;

namespace {

using vkrt::checked_product;

template <typename T>
void check_array(const py::array& array, const char* name, int dimensions) {
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
    checked_product({array.shape(0), array.shape(1), array.shape(2)}, sizeof(T));
}

int side(const py::array& array, int dimension) {
    return static_cast<int>(array.shape(dimension));
}

int checked_side(std::ptrdiff_t value) { return static_cast<int>(checked_product({value}, 1)); }

int checked_threads(int threads) {
    if (threads < 0) throw py::value_error("threads must be 0 (one per core) or more");
    return threads;
}

void check_plane(const py::array& array) {
    if (array.shape(1) * array.shape(2) > std::numeric_limits<std::int32_t>::max()) {
        throw py::value_error("a mask must have fewer than 2**31 pixels");
    }
}

template <typename T>
py::array_t<T> copy_of(const py::array& array) {
    py::array_t<T> copy({array.shape(0), array.shape(1), array.shape(2)});
    std::memcpy(copy.mutable_data(), array.data(), static_cast<std::size_t>(array.nbytes()));
    return copy;
}

py::array_t<float> resize(const py::array& photo, std::ptrdiff_t size,
                          const std::array<float, 3>& scale, const std::array<float, 3>& bias,
                          const std::optional<py::array>& out, int threads) {
    check_array<std::uint8_t>(photo, "photo", 3);
    if (photo.shape(2) != 3) throw py::value_error("photo must have 3 channels");
    // A row is indexed by int in the inner loops.
    checked_product({3 * photo.shape(1) + 1}, sizeof(float));
    checked_product({4, checked_side(size), size}, sizeof(float));
    py::array_t<float> result;
    if (out) {
        check_array<float>(*out, "out", 3);
        if (out->shape(0) != 3 || out->shape(1) != size || out->shape(2) != size) {
            throw py::value_error("out must have shape (3, size, size)");
        }
        result = py::array_t<float>(*out);
    } else {
        result = py::array_t<float>({std::ptrdiff_t{3}, size, size});
    }
    const vkrt::Photo source{static_cast<const std::uint8_t*>(photo.data()), side(photo, 0),
                             side(photo, 1)};
    float* target = result.mutable_data();
    const int used = checked_threads(threads);
    {
        const py::gil_scoped_release unlocked;
        vkrt::resize_photo(source, static_cast<int>(size), {scale, bias}, used, target);
    }
    return result;
}

vkrt::Logits view_logits(const py::array& logits) {
    check_array<float>(logits, "logits", 3);
    return {static_cast<const float*>(logits.data()), side(logits, 0), side(logits, 1),
            side(logits, 2)};
}

py::array_t<float> upsample(const py::array& logits, std::ptrdiff_t height, std::ptrdiff_t width,
                            int threads) {
    const vkrt::Logits source = view_logits(logits);
    checked_product({source.count, height, width}, sizeof(float));
    const vkrt::Size size{static_cast<int>(height), static_cast<int>(width)};
    py::array_t<float> result({std::ptrdiff_t{source.count}, height, width});
    float* target = result.mutable_data();
    const int used = checked_threads(threads);
    {
        const py::gil_scoped_release unlocked;
        vkrt::upsample_logits(source, size, used, target);
    }
    return result;
}

py::tuple binarize(const py::array& logits, std::ptrdiff_t height, std::ptrdiff_t width,
                   float threshold, float offset, int threads) {
    const vkrt::Logits source = view_logits(logits);
    checked_product({source.count, height, width}, 1);
    const vkrt::Size size{static_cast<int>(height), static_cast<int>(width)};
    py::array_t<bool> masks({std::ptrdiff_t{source.count}, height, width});
    auto* target = reinterpret_cast<std::uint8_t*>(masks.mutable_data());
    const int used = checked_threads(threads);
    std::vector<vkrt::Counts> counts;
    {
        const py::gil_scoped_release unlocked;
        counts = vkrt::binarize_logits(source, size, {threshold, offset}, used, target);
    }
    py::array_t<std::int64_t> areas(source.count);
    py::array_t<float> stability(source.count);
    for (py::ssize_t i = 0; i < source.count; ++i) {
        const vkrt::Counts& mask = counts[static_cast<std::size_t>(i)];
        areas.mutable_at(i) = mask.area;
        stability.mutable_at(i) =
            mask.outer > 0 ? static_cast<float>(static_cast<double>(mask.inner) /
                                                static_cast<double>(mask.outer))
                           : 0.0F;
    }
    return py::make_tuple(masks, areas, stability);
}

py::array_t<bool> flip_small(const py::array& masks, bool value, std::int64_t max_area,
                             int threads) {
    check_array<bool>(masks, "masks", 3);
    check_plane(masks);
    const int used = checked_threads(threads);
    py::array_t<bool> result = copy_of<bool>(masks);
    const vkrt::Planes<std::uint8_t> planes{
        reinterpret_cast<std::uint8_t*>(result.mutable_data()), side(masks, 0), side(masks, 1),
        side(masks, 2)};
    {
        const py::gil_scoped_release unlocked;
        vkrt::flip_small_components(planes, value ? 1 : 0, max_area, used);
    }
    return result;
}

py::array_t<float> clean_logits(const py::array& logits, float threshold,
                                std::int64_t max_hole_area, std::int64_t max_sprinkle_area,
                                int threads) {
    check_array<float>(logits, "logits", 3);
    check_plane(logits);
    const int used = checked_threads(threads);
    py::array_t<float> result = copy_of<float>(logits);
    const vkrt::Planes<float> planes{result.mutable_data(), side(logits, 0), side(logits, 1),
                                     side(logits, 2)};
    {
        const py::gil_scoped_release unlocked;
        vkrt::clean_logits(planes, {threshold, max_hole_area, max_sprinkle_area}, used);
    }
    return result;
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() = "Pre- and post-processing in C++; vkrt.media.fallback has the same functions.";
    module.def("resize", &resize, py::arg("photo"), py::arg("size"), py::arg("scale"),
               py::arg("bias"), py::arg("out") = py::none(), py::arg("threads") = 0,
               "Resize (H, W, 3) uint8 to (3, size, size) float32, times scale plus bias.");
    module.def("upsample", &upsample, py::arg("logits"), py::arg("height"), py::arg("width"),
               py::arg("threads") = 0, "Stretch (N, h, w) float32 to (N, height, width).");
    module.def("binarize", &binarize, py::arg("logits"), py::arg("height"), py::arg("width"),
               py::arg("threshold"), py::arg("offset"), py::arg("threads") = 0,
               "Stretch and threshold: masks (N, height, width), areas (N,), stability (N,).");
    module.def("flip_small", &flip_small, py::arg("masks"), py::arg("value"), py::arg("max_area"),
               py::arg("threads") = 0,
               "Return (N, H, W) bool with the small components of `value` flipped.");
    module.def("clean_logits", &clean_logits, py::arg("logits"), py::arg("threshold"),
               py::arg("max_hole_area"), py::arg("max_sprinkle_area"), py::arg("threads") = 0,
               "Return (N, h, w) float32 with small holes filled and sprinkles removed.");
}

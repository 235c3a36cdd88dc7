// The numpy face of csrc: checks shapes, dtypes and layout, allocates, and releases the GIL.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

#include "arrays.h"
#include "attention_bindings.h"
#include "components.h"
#include "extent.h"
#include "masks.h"
#include "resize.h"
#include "rle_bindings.h"

namespace py = pybind11;

namespace {

template <typename T>
py::array_t<T> copy_of(const py::array& array) {
    py::array_t<T> copy({array.shape(0), array.shape(1), array.shape(2)});
    std::memcpy(copy.mutable_data(), array.data(), static_cast<std::size_t>(array.nbytes()));
    return copy;
}

template <typename T, typename Item = T>
vkrt::Planes<Item> view_copy(py::array_t<T>& copy) {
    return {reinterpret_cast<Item*>(copy.mutable_data()), static_cast<int>(copy.shape(0)),
            static_cast<int>(copy.shape(1)), static_cast<int>(copy.shape(2))};
}

using ThreeFloats = std::array<float, 3>;

// Check the arguments, allocate what is missing, and call run(photo, size, threads, target).
template <typename Run>
py::array_t<float> resize_by(const py::array& photo, std::ptrdiff_t size,
                             const std::optional<py::array>& out, int threads, const Run& run) {
    vkrt::check_planes<std::uint8_t>(photo, "photo");
    if (photo.shape(2) != 3) throw py::value_error("photo must have 3 channels");
    // A row is indexed by int in the inner loops.
    vkrt::checked_product({3 * photo.shape(1) + 1}, sizeof(float));
    const vkrt::Size target_size = vkrt::checked_size(4, size, size, sizeof(float));
    py::array_t<float> result;
    if (out) {
        vkrt::check_planes<float>(*out, "out");
        if (out->shape(0) != 3 || out->shape(1) != size || out->shape(2) != size) {
            throw py::value_error("out must have shape (3, size, size)");
        }
        result = py::array_t<float>(*out);
    } else {
        result = py::array_t<float>({std::ptrdiff_t{3}, size, size});
    }
    const vkrt::Photo source{static_cast<const std::uint8_t*>(photo.data()),
                             static_cast<int>(photo.shape(0)), static_cast<int>(photo.shape(1))};
    float* target = result.mutable_data();
    const int used = vkrt::checked_threads(threads);
    {
        const py::gil_scoped_release unlocked;
        run(source, target_size.height, used, target);
    }
    return result;
}

py::array_t<float> resize(const py::array& photo, std::ptrdiff_t size, const ThreeFloats& scale,
                          const ThreeFloats& bias, const std::optional<py::array>& out,
                          int threads) {
    return resize_by(photo, size, out, threads,
                     [&](const vkrt::Photo& source, int side, int used, float* target) {
                         vkrt::resize_photo(source, side, {scale, bias}, used, target);
                     });
}

py::array_t<float> resize_bicubic(const py::array& photo, std::ptrdiff_t size,
                                  const ThreeFloats& scale, const ThreeFloats& bias,
                                  const std::optional<py::array>& out, int threads,
                                  bool down_first) {
    const auto order = down_first ? vkrt::PassOrder::kDownFirst : vkrt::PassOrder::kAcrossFirst;
    return resize_by(photo, size, out, threads,
                     [&](const vkrt::Photo& source, int side, int used, float* target) {
                         vkrt::resize_photo_bicubic(source, side, {scale, bias}, order, used,
                                                    target);
                     });
}

py::array_t<float> upsample(const py::array& logits, std::ptrdiff_t height, std::ptrdiff_t width,
                            int threads) {
    const vkrt::Logits source = vkrt::view_logits(logits);
    const vkrt::Size size = vkrt::checked_size(source.count, height, width, sizeof(float));
    const int used = vkrt::checked_threads(threads);
    py::array_t<float> result({std::ptrdiff_t{source.count}, height, width});
    float* target = result.mutable_data();
    {
        const py::gil_scoped_release unlocked;
        vkrt::upsample_logits(source, size, used, target);
    }
    return result;
}

template <typename T>
py::tuple binarize_as(const vkrt::Logits& source, const vkrt::Size& size, const vkrt::Cut& cut,
                      vkrt::Layout layout, int threads) {
    const std::ptrdiff_t width = layout == vkrt::Layout::kBits ? (size.width + 7) / 8 : size.width;
    py::array_t<T> masks({std::ptrdiff_t{source.count}, std::ptrdiff_t{size.height}, width});
    auto* target = reinterpret_cast<std::uint8_t*>(masks.mutable_data());
    std::vector<vkrt::Tally> tallies;
    {
        const py::gil_scoped_release unlocked;
        tallies = vkrt::binarize_logits(source, size, cut, layout, threads, target);
    }
    const py::tuple rest = vkrt::areas_stability_boxes(tallies);
    return py::make_tuple(masks, rest[0], rest[1], rest[2]);
}

py::tuple binarize(const py::array& logits, std::ptrdiff_t height, std::ptrdiff_t width,
                   float threshold, float offset, int threads, bool packed) {
    const vkrt::Logits source = vkrt::view_logits(logits);
    const vkrt::Size size = vkrt::checked_size(source.count, height, width, 1);
    const int used = vkrt::checked_threads(threads);
    const vkrt::Cut cut{threshold, offset};
    if (packed) {
        return binarize_as<std::uint8_t>(source, size, cut, vkrt::Layout::kBits, used);
    }
    return binarize_as<bool>(source, size, cut, vkrt::Layout::kBytes, used);
}

py::tuple measure(const py::array& masks, int threads) {
    const vkrt::Planes<const std::uint8_t> planes = vkrt::view_masks(masks);
    const int used = vkrt::checked_threads(threads);
    std::vector<vkrt::Tally> tallies;
    {
        const py::gil_scoped_release unlocked;
        tallies = vkrt::measure_masks(planes, used);
    }
    return py::make_tuple(vkrt::areas_of(tallies), vkrt::boxes_of(tallies));
}

py::array_t<bool> flip_small(const py::array& masks, bool value, std::int64_t max_area,
                             int threads) {
    vkrt::view_masks(masks);
    const int used = vkrt::checked_threads(threads);
    py::array_t<bool> result = copy_of<bool>(masks);
    const auto planes = view_copy<bool, std::uint8_t>(result);
    {
        const py::gil_scoped_release unlocked;
        vkrt::flip_small_components(planes, value ? 1 : 0, max_area, used);
    }
    return result;
}

py::array_t<float> clean_logits(const py::array& logits, float threshold,
                                std::int64_t max_hole_area, std::int64_t max_sprinkle_area,
                                int threads) {
    vkrt::view_logits(logits);
    vkrt::check_pixels(logits.shape(1), logits.shape(2));
    const int used = vkrt::checked_threads(threads);
    py::array_t<float> result = copy_of<float>(logits);
    const auto planes = view_copy<float>(result);
    {
        const py::gil_scoped_release unlocked;
        vkrt::clean_logits(planes, {threshold, max_hole_area, max_sprinkle_area}, used);
    }
    return result;
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() =
        "Pre- and post-processing in C++; vkrt.media.fallback has the same functions. Attention; "
        "vkrt.kernels.memory_attention.host has its stand-in.";
    module.def("resize", &resize, py::arg("photo"), py::arg("size"), py::arg("scale"),
               py::arg("bias"), py::arg("out") = py::none(), py::arg("threads") = 0,
               "Resize (H, W, 3) uint8 to (3, size, size) float32, times scale plus bias.");
    module.def("resize_bicubic", &resize_bicubic, py::arg("photo"), py::arg("size"),
               py::arg("scale"), py::arg("bias"), py::arg("out") = py::none(),
               py::arg("threads") = 0, py::arg("down_first") = false,
               "As resize, with Pillow's bicubic filter, which rounds each pass to bytes.");
    module.def("upsample", &upsample, py::arg("logits"), py::arg("height"), py::arg("width"),
               py::arg("threads") = 0, "Stretch (N, h, w) float32 to (N, height, width).");
    module.def("binarize", &binarize, py::arg("logits"), py::arg("height"), py::arg("width"),
               py::arg("threshold"), py::arg("offset"), py::arg("threads") = 0,
               py::arg("packed") = false,
               "Stretch and threshold: masks (N, height, width), areas (N,), stability (N,), "
               "boxes (N, 4); packed, eight pixels a byte.");
    module.def("measure", &measure, py::arg("masks"), py::arg("threads") = 0,
               "Return areas (N,) int64 and boxes (N, 4) float32 of (N, H, W) bool.");
    module.def("flip_small", &flip_small, py::arg("masks"), py::arg("value"), py::arg("max_area"),
               py::arg("threads") = 0,
               "Return (N, H, W) bool with the small components of `value` flipped.");
    module.def("clean_logits", &clean_logits, py::arg("logits"), py::arg("threshold"),
               py::arg("max_hole_area"), py::arg("max_sprinkle_area"), py::arg("threads") = 0,
               "Return (N, h, w) float32 with small holes filled and sprinkles removed.");
    vkrt::define_rle(module);
    vkrt::define_attention(module);
}

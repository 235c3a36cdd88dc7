#include "rle_bindings.h"

#include <pybind11/stl.h>

#include <cmath>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "arrays.h"
#include "boxes.h"
#include "parallel.h"
#include "rle.h"
#include "rle_text.h"

namespace vkrt {

namespace {

template <typename T>
py::array_t<T> to_array(const std::vector<T>& values) {
    return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::list to_list(const std::vector<RunLengths>& all) {
    py::list runs;
    for (const RunLengths& each : all) runs.append(to_array(each));
    return runs;
}

py::list encode(const py::array& masks, int threads) {
    const Planes<const std::uint8_t> planes = view_masks(masks);
    const int used = checked_threads(threads);
    std::vector<RunLengths> runs;
    {
        const py::gil_scoped_release unlocked;
        runs = encode_masks(planes, used);
    }
    return to_list(runs);
}

py::tuple encode_from_logits(const py::array& logits, std::ptrdiff_t height, std::ptrdiff_t width,
                             float threshold, float offset, int threads) {
    const Logits source = view_logits(logits);
    const Size size = checked_size(source.count, height, width, 1);
    check_pixels(height, width);
    const int used = checked_threads(threads);
    EncodedMasks encoded;
    {
        const py::gil_scoped_release unlocked;
        encoded = encode_logits(source, size, {threshold, offset}, used);
    }
    const py::tuple rest = areas_stability_boxes(encoded.tallies);
    return py::make_tuple(to_list(encoded.runs), rest[0], rest[1], rest[2]);
}

py::array_t<bool> decode(const std::vector<py::array>& runs, std::ptrdiff_t height,
                         std::ptrdiff_t width, int threads) {
    const auto count = static_cast<std::ptrdiff_t>(runs.size());
    const Size size = checked_size(count, height, width, 1);
    check_pixels(height, width);
    const int used = checked_threads(threads);
    for (const py::array& each : runs) check_layout<std::uint32_t>(each, "runs", 1);
    std::vector<const std::uint32_t*> data;
    std::vector<std::size_t> lengths;
    for (const py::array& each : runs) {
        data.push_back(static_cast<const std::uint32_t*>(each.data()));
        lengths.push_back(static_cast<std::size_t>(each.size()));
    }
    py::array_t<bool> masks({count, height, width});
    auto* out = reinterpret_cast<std::uint8_t*>(masks.mutable_data());
    {
        const py::gil_scoped_release unlocked;
        parallel_for(count, used, [&](std::int64_t i) {
            const auto at = static_cast<std::size_t>(i);
            decode_runs(data[at], lengths[at], size, out + i * height * width);
        });
    }
    return masks;
}

py::bytes to_text(const py::array& runs) {
    check_layout<std::uint32_t>(runs, "runs", 1);
    const auto* data = static_cast<const std::uint32_t*>(runs.data());
    const auto count = static_cast<std::size_t>(runs.size());
    std::string text;
    {
        const py::gil_scoped_release unlocked;
        text = runs_to_text(data, count);
    }
    return py::bytes(text);
}

py::array_t<std::uint32_t> from_text(const py::bytes& text) {
    const std::string_view view = text;
    std::vector<std::uint32_t> runs;
    {
        const py::gil_scoped_release unlocked;
        runs = text_to_runs(view.data(), view.size());
    }
    return to_array(runs);
}

// Comparisons with NaN have no order to sort by.
void check_no_nan(const py::array& array, const char* name) {
    const auto* values = static_cast<const float*>(array.data());
    for (py::ssize_t i = 0; i < array.size(); ++i) {
        if (std::isnan(values[i])) throw py::value_error(std::string(name) + " must not be NaN");
    }
}

py::array_t<std::int64_t> nms(const py::array& boxes, const py::array& scores, float threshold) {
    check_layout<float>(boxes, "boxes", 2);
    check_layout<float>(scores, "scores", 1);
    if (boxes.shape(1) != 4) throw py::value_error("boxes must have shape (N, 4)");
    if (boxes.shape(0) != scores.shape(0)) {
        throw py::value_error("boxes and scores must be equally many, not " +
                              std::to_string(boxes.shape(0)) + " and " +
                              std::to_string(scores.shape(0)));
    }
    check_no_nan(boxes, "boxes");
    check_no_nan(scores, "scores");
    if (std::isnan(threshold)) throw py::value_error("threshold must not be NaN");
    const auto* corners = static_cast<const float*>(boxes.data());
    const auto* ranks = static_cast<const float*>(scores.data());
    const auto count = static_cast<std::size_t>(scores.size());
    std::vector<std::int64_t> kept;
    {
        const py::gil_scoped_release unlocked;
        kept = suppress_boxes(corners, ranks, count, threshold);
    }
    return to_array(kept);
}

}  // namespace

void define_rle(py::module_& module) {
    module.def("encode_masks", &encode, py::arg("masks"), py::arg("threads") = 0,
               "Return the COCO run lengths of (N, H, W) bool: N arrays of uint32.");
    module.def("encode_logits", &encode_from_logits, py::arg("logits"), py::arg("height"),
               py::arg("width"), py::arg("threshold"), py::arg("offset"), py::arg("threads") = 0,
               "As binarize, with the masks' run lengths instead of the masks.");
    module.def("decode_masks", &decode, py::arg("runs"), py::arg("height"), py::arg("width"),
               py::arg("threads") = 0, "Return the masks (N, height, width) of N run lengths.");
    module.def("runs_to_text", &to_text, py::arg("runs"),
               "Return (K,) uint32 run lengths as COCO's compressed string.");
    module.def("text_to_runs", &from_text, py::arg("text"),
               "Return the (K,) uint32 run lengths of a COCO compressed string.");
    module.def("nms", &nms, py::arg("boxes"), py::arg("scores"), py::arg("threshold"),
               "Return (K,) int64, the places of the boxes to keep, by falling score.");
}

}  // namespace vkrt

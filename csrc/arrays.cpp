#include "arrays.h"

#include <limits>
#include <stdexcept>

namespace vkrt {

namespace {

// Beyond this the coordinates of float32 interpolation are no longer exact, and the tables of an
// axis would take as much memory as a large photo.
constexpr std::ptrdiff_t kLongestSide = 1 << 24;

}  // namespace

Logits view_logits(const py::array& logits) {
    check_planes<float>(logits, "logits");
    return view_planes<float>(logits);
}

Planes<const std::uint8_t> view_masks(const py::array& masks) {
    check_planes<bool>(masks, "masks");
    check_pixels(masks.shape(1), masks.shape(2));
    return view_planes<bool, std::uint8_t>(masks);
}

Size checked_size(std::ptrdiff_t count, std::ptrdiff_t height, std::ptrdiff_t width,
                  std::ptrdiff_t item_bytes) {
    checked_product({count, height, width}, item_bytes);
    if (height > kLongestSide || width > kLongestSide) {
        throw std::invalid_argument("a side of more than " + std::to_string(kLongestSide) +
                                    " pixels is too large");
    }
    return {static_cast<int>(height), static_cast<int>(width)};
}

void check_pixels(std::ptrdiff_t height, std::ptrdiff_t width) {
    if (height * width > std::numeric_limits<std::int32_t>::max()) {
        throw py::value_error("a mask must have fewer than 2**31 pixels");
    }
}

int checked_threads(int threads) {
    if (threads < 0) throw py::value_error("threads must be 0 (one per core) or more");
    return threads;
}

py::array_t<std::int64_t> areas_of(const std::vector<Tally>& tallies) {
    py::array_t<std::int64_t> areas(static_cast<py::ssize_t>(tallies.size()));
    std::int64_t* area = areas.mutable_data();
    for (const Tally& tally : tallies) *area++ = tally.counts.area;
    return areas;
}

py::array_t<float> boxes_of(const std::vector<Tally>& tallies) {
    py::array_t<float> boxes({static_cast<py::ssize_t>(tallies.size()), py::ssize_t{4}});
    float* side = boxes.mutable_data();
    for (const Tally& tally : tallies) {
        const Box box = tally.box.is_empty() ? Box{0, 0, 0, 0} : tally.box;
        for (const int value : {box.x0, box.y0, box.x1, box.y1}) {
            *side++ = static_cast<float>(value);
        }
    }
    return boxes;
}

py::tuple areas_stability_boxes(const std::vector<Tally>& tallies) {
    py::array_t<float> stability(static_cast<py::ssize_t>(tallies.size()));
    float* share = stability.mutable_data();
    for (const Tally& tally : tallies) {
        const auto inner = static_cast<double>(tally.counts.inner);
        const auto outer = static_cast<double>(tally.counts.outer);
        *share++ = outer > 0 ? static_cast<float>(inner / outer) : 0.0F;
    }
    return py::make_tuple(areas_of(tallies), stability, boxes_of(tallies));
}

}  // namespace vkrt

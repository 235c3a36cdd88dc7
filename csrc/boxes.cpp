#include "boxes.h"

#include <algorithm>
#include <numeric>

#include "clones.h"

namespace vkrt {

namespace {

// Boxes by falling score, each coordinate by itself.
struct Columns {
    std::vector<float> x0, y0, x1, y1, area;
};

Columns make_columns(const float* boxes, const std::vector<std::int64_t>& order) {
    Columns columns;
    for (const std::int64_t place : order) {
        const float* box = boxes + 4 * place;
        columns.x0.push_back(box[0]);
        columns.y0.push_back(box[1]);
        columns.x1.push_back(box[2]);
        columns.y1.push_back(box[3]);
        columns.area.push_back((box[2] - box[0]) * (box[3] - box[1]));
    }
    return columns;
}

// Mark the boxes after `best` that overlap it too much.
VKRT_CLONES void drop_overlapping(const float* VKRT_RESTRICT x0, const float* VKRT_RESTRICT y0,
                                  const float* VKRT_RESTRICT x1, const float* VKRT_RESTRICT y1,
                                  const float* VKRT_RESTRICT area, std::size_t best,
                                  std::size_t count, float threshold,
                                  std::uint8_t* VKRT_RESTRICT dropped) {
    const float left = x0[best], top = y0[best], right = x1[best], bottom = y1[best];
    const float own = area[best];
    for (std::size_t i = best + 1; i < count; ++i) {
        const float width = std::max(std::min(x1[i], right) - std::max(x0[i], left), 0.0F);
        const float height = std::max(std::min(y1[i], bottom) - std::max(y0[i], top), 0.0F);
        const float shared = width * height;
        const float iou = shared / (own + area[i] - shared);
        dropped[i] |= static_cast<std::uint8_t>(iou > threshold ? 1 : 0);
    }
}

}  // namespace

std::vector<std::int64_t> suppress_boxes(const float* boxes, const float* scores,
                                         std::size_t count, float threshold) {
    std::vector<std::int64_t> order(count);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](std::int64_t a, std::int64_t b) { return scores[a] > scores[b]; });
    const Columns columns = make_columns(boxes, order);
    std::vector<std::uint8_t> dropped(count);
    std::vector<std::int64_t> kept;
    for (std::size_t i = 0; i < count; ++i) {
        if (dropped[i] != 0) continue;
        kept.push_back(order[i]);
        drop_overlapping(columns.x0.data(), columns.y0.data(), columns.x1.data(),
                         columns.y1.data(), columns.area.data(), i, count, threshold,
                         dropped.data());
    }
    return kept;
}

}  // namespace vkrt

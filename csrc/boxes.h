// Boxes that overlap, thinned out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace vkrt {

// Return the places of the boxes to keep, by falling score, of equal ones the first first: each
// box that no better one kept overlaps with an IoU above the threshold. A box is x0, y0, x1, y1;
// no score is NaN.
std::vector<std::int64_t> suppress_boxes(const float* boxes, const float* scores,
                                         std::size_t count, float threshold);

}  // namespace vkrt

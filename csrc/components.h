// 8-connected components of masks, and what is done to the small ones.
#pragma once

#include <cstdint>

#include "planes.h"

namespace vkrt {

// Turn each 8-connected component of `value` (0 or 1) with at most max_area pixels into the other
// value, in place. A plane has fewer than 2^31 items, here as below.
void flip_small_components(const Planes<std::uint8_t>& masks, std::uint8_t value,
                           std::int64_t max_area, int threads);

// How small holes and sprinkles are cleaned from logits; a limit of 0 leaves them.
struct Cleaning {
    float threshold;
    std::int64_t max_hole_area;
    std::int64_t max_sprinkle_area;
};

// Set small holes (components at or below the threshold) to threshold + 10 and small sprinkles
// (components above it) to threshold - 10, in place. Both are found in the logits as given, so a
// small ring with a small hole turns inside out, as in SAM 2.
void clean_logits(const Planes<float>& logits, const Cleaning& cleaning, int threads);

}  // namespace vkrt

// Low-resolution mask logits to masks of a photo's size.
#pragma once

#include <cstdint>
#include <vector>

#include "mask_rows.h"
#include "planes.h"
#include "tally.h"

namespace vkrt {

// Write `count` planes of floats at the new size: what PyTorch computes for mode="bilinear",
// align_corners=False.
void upsample_logits(const Logits& logits, const Size& size, int threads, float* out);

enum class Layout {
    kBytes,  // 0 or 1 for each pixel
    kBits,   // eight pixels a byte, the first in the highest bit; rows filled up with 0
};

// Write `count` planes of 0 and 1 at the new size and return each mask's tally. The same numbers
// as upsample_logits and a comparison, without a float image.
std::vector<Tally> binarize_logits(const Logits& logits, const Size& size, const Cut& cut,
                                   Layout layout, int threads, std::uint8_t* out);

// Return the area and the box of each mask; any byte but 0 is a pixel of it.
std::vector<Tally> measure_masks(const Planes<const std::uint8_t>& masks, int threads);

}  // namespace vkrt

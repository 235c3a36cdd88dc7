// Masks as COCO run lengths: the pixels column by column, first a run of zeros, then one of ones,
// and so on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "mask_rows.h"
#include "planes.h"
#include "tally.h"

namespace vkrt {

// Fewer than 2^31 pixels in all; only the first run may be empty.
using RunLengths = std::vector<std::uint32_t>;

// Return the runs of each mask; any byte but 0 is a pixel of it. A plane has fewer than 2^31 items.
std::vector<RunLengths> encode_masks(const Planes<const std::uint8_t>& masks, int threads);

struct EncodedMasks {
    std::vector<RunLengths> runs;
    std::vector<Tally> tallies;
};

// Return what binarize_logits and encode_masks would, without the masks.
EncodedMasks encode_logits(const Logits& logits, const Size& size, const Cut& cut, int threads);

// Write a mask of 0 and 1.
// Throws std::invalid_argument where the runs do not add up to the size.
void decode_runs(const std::uint32_t* runs, std::size_t count, const Size& size,
                 std::uint8_t* out);

}  // namespace vkrt

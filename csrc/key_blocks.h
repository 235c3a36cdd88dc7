// The keys of one object that take part in attention, block by block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "tile.h"

namespace vkrt {

class KeyBlocks {
   public:
    // (count, depth) keys and (count, width) values, which must outlive this; `bias` may be null.
    KeyBlocks(const float* keys, const float* values, const float* bias, std::ptrdiff_t count,
              std::ptrdiff_t depth, std::ptrdiff_t width);

    std::ptrdiff_t size() const;

    // Return a block. Where keys between its own take no part, its rows are copied to `room`, and
    // are good until that is used again.
    KeyBlock at(std::ptrdiff_t index, std::vector<float>& room) const;

   private:
    KeyBlock gather(const std::int32_t* chosen, KeyBlock block, std::vector<float>& room) const;

    const float* keys_;
    const float* values_;
    std::ptrdiff_t depth_, width_;
    std::vector<std::int32_t> chosen_;  // those that take part, in order
    std::vector<float> bias_;           // of those, times kLog2E
};

}  // namespace vkrt

// The keys of one object that take part in attention, block by block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "rows.h"
#include "tile.h"

namespace vkrt {

class KeyBlocks {
   public:
    // `count` keys of `depth` and values of `width`, which must outlive this; `bias` may be null.
    KeyBlocks(const Rows& keys, const Rows& values, const float* bias, std::ptrdiff_t count,
              std::ptrdiff_t depth, std::ptrdiff_t width);

    std::ptrdiff_t size() const;

    // Return a block. Where its rows lie apart, or keys between its own take no part, they are
    // copied to `room`, and are good until that is used again.
    KeyBlock at(std::ptrdiff_t index, std::vector<float>& room) const;

   private:
    KeyBlock gather(const std::int32_t* chosen, KeyBlock block, std::vector<float>& room) const;

    Rows keys_, values_;
    std::ptrdiff_t depth_, width_;
    std::vector<std::int32_t> chosen_;  // those that take part, in order
    std::vector<float> bias_;           // of those, times kLog2E
};

}  // namespace vkrt

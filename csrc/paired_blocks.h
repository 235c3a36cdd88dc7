// Blocks of keys rounded to bf16, in pairs, for a Tile that multiplies those.
#pragma once

#include <cstddef>
#include <vector>

#include "key_blocks.h"
#include "tile.h"

namespace vkrt {

class PairedBlocks {
   public:
    // Round the blocks of all objects on so many threads; their bias must outlive this.
    PairedBlocks(const std::vector<KeyBlocks>& objects, std::ptrdiff_t depth, std::ptrdiff_t width,
                 int threads);

    KeyBlock at(std::size_t object, std::ptrdiff_t index) const;

   private:
    std::vector<std::ptrdiff_t> first_;  // of an object's blocks, among those of all
    std::vector<KeyBlock> blocks_;
    std::vector<float> memory_;
};

}  // namespace vkrt

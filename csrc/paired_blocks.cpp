#include "paired_blocks.h"

#include <cstdint>

#include "bf16.h"
#include "clones.h"
#include "parallel.h"

namespace vkrt {

namespace {

// Write rows, each of them in pairs of neighbours; the last of an odd length goes with a 0.
VKRT_CLONES void pair_along_rows(const float* VKRT_RESTRICT from, std::ptrdiff_t rows,
                                 std::ptrdiff_t length, float* VKRT_RESTRICT to) {
    for (std::ptrdiff_t row = 0; row < rows; ++row, from += length) {
        for (std::ptrdiff_t i = 0; i + 1 < length; i += 2) {
            store_pair(from[i], from[i + 1], to++);
        }
        if (length % 2 == 1) store_pair(from[length - 1], 0.0F, to++);
    }
}

// Write pairs of a number and the one below it in the next row; below the last odd row are zeros.
VKRT_CLONES void pair_across_rows(const float* VKRT_RESTRICT from, std::ptrdiff_t rows,
                                  std::ptrdiff_t length, float* VKRT_RESTRICT to) {
    for (std::ptrdiff_t row = 0; row + 1 < rows; row += 2, from += 2 * length, to += length) {
        for (std::ptrdiff_t i = 0; i < length; ++i) {
            store_pair(from[i], from[length + i], to + i);
        }
    }
    if (rows % 2 == 0) return;
    for (std::ptrdiff_t i = 0; i < length; ++i) store_pair(from[i], 0.0F, to + i);
}

}  // namespace

PairedBlocks::PairedBlocks(const std::vector<KeyBlocks>& objects, std::ptrdiff_t depth,
                           std::ptrdiff_t width, int threads) {
    std::vector<std::size_t> owners;
    for (std::size_t i = 0; i < objects.size(); ++i) {
        first_.push_back(static_cast<std::ptrdiff_t>(owners.size()));
        owners.insert(owners.end(), static_cast<std::size_t>(objects[i].size()), i);
    }
    const std::ptrdiff_t of_keys = kBlockKeys * ((depth + 1) / 2);
    const std::ptrdiff_t of_block = of_keys + kBlockKeys / 2 * width;
    blocks_.resize(owners.size());
    memory_.resize(owners.size() * static_cast<std::size_t>(of_block));
    parallel_for(static_cast<std::int64_t>(owners.size()), threads, [&](std::int64_t number) {
        const auto i = static_cast<std::size_t>(number);
        std::vector<float> room;
        KeyBlock block = objects[owners[i]].at(number - first_[owners[i]], room);
        float* keys = memory_.data() + number * of_block;
        float* values = keys + of_keys;
        pair_along_rows(block.keys, block.count, depth, keys);
        pair_across_rows(block.values, block.count, width, values);
        blocks_[i] = {keys, values, block.bias, block.count};
    });
}

KeyBlock PairedBlocks::at(std::size_t object, std::ptrdiff_t index) const {
    return blocks_[static_cast<std::size_t>(first_[object] + index)];
}

}  // namespace vkrt

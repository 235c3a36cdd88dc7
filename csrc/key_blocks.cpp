#include "key_blocks.h"

#include <algorithm>

namespace vkrt {

namespace {

constexpr float kMasked = -1e8F;

float* copy_row(const Rows& rows, std::ptrdiff_t length, std::ptrdiff_t row, float* to) {
    return std::copy_n(rows.at(row), length, to);
}

}  // namespace

KeyBlocks::KeyBlocks(const Rows& keys, const Rows& values, const float* bias, std::ptrdiff_t count,
                     std::ptrdiff_t depth, std::ptrdiff_t width)
    : keys_(keys), values_(values), depth_(depth), width_(width) {
    for (std::ptrdiff_t i = 0; i < count; ++i) {
        const float added = bias == nullptr ? 0.0F : bias[i];
        if (added <= kMasked) continue;
        chosen_.push_back(static_cast<std::int32_t>(i));
        bias_.push_back(added * kLog2E);
    }
}

std::ptrdiff_t KeyBlocks::size() const {
    return (static_cast<std::ptrdiff_t>(chosen_.size()) + kBlockKeys - 1) / kBlockKeys;
}

KeyBlock KeyBlocks::at(std::ptrdiff_t index, std::vector<float>& room) const {
    const std::ptrdiff_t begin = index * kBlockKeys;
    const std::ptrdiff_t left = static_cast<std::ptrdiff_t>(chosen_.size()) - begin;
    const std::ptrdiff_t count = std::min<std::ptrdiff_t>(left, kBlockKeys);
    const std::int32_t* chosen = chosen_.data() + begin;
    const KeyBlock block{keys_.at(chosen[0]), values_.at(chosen[0]), bias_.data() + begin, count};
    const bool is_run = chosen[count - 1] - chosen[0] == count - 1;
    const bool is_dense = keys_.row == depth_ && values_.row == width_;
    return is_run && is_dense ? block : gather(chosen, block, room);
}

KeyBlock KeyBlocks::gather(const std::int32_t* chosen, KeyBlock block,
                           std::vector<float>& room) const {
    room.resize(static_cast<std::size_t>(kBlockKeys * (depth_ + width_)));
    float* to = room.data();
    block.keys = to;
    for (std::ptrdiff_t i = 0; i < block.count; ++i) to = copy_row(keys_, depth_, chosen[i], to);
    block.values = to;
    for (std::ptrdiff_t i = 0; i < block.count; ++i) to = copy_row(values_, width_, chosen[i], to);
    return block;
}

}  // namespace vkrt

#include "stretch.h"

#include <cstddef>

#include "clones.h"

namespace vkrt {

namespace {

VKRT_CLONES void stretch_blocks(const float* VKRT_RESTRICT row,
                                const std::int32_t* VKRT_RESTRICT low,
                                const std::int32_t* VKRT_RESTRICT high,
                                const float* VKRT_RESTRICT low_weight,
                                const float* VKRT_RESTRICT high_weight,
                                const std::int32_t* VKRT_RESTRICT blocks, std::size_t count,
                                float* VKRT_RESTRICT out) {
    for (std::size_t n = 0; n < count; ++n) {
        const std::ptrdiff_t begin = static_cast<std::ptrdiff_t>(blocks[n]) * kBlock;
        for (std::ptrdiff_t i = begin; i < begin + kBlock; ++i) {
            out[i] = row[low[i]] * low_weight[i] + row[high[i]] * high_weight[i];
        }
    }
}

}  // namespace

StretchedRows::StretchedRows(const float* plane, int source_width, const Axis& across)
    : plane_(plane), source_width_(source_width), across_(across) {
    for (std::vector<float>& row : rows_) row.resize(across.low.size());
    for (std::vector<std::int32_t>& held : held_) {
        held.assign(static_cast<std::size_t>(across.blocks()), -1);
    }
}

void StretchedRows::move_to(int top, int bottom, const std::vector<std::int32_t>& blocks) {
    fill(top, blocks);
    fill(bottom, blocks);
    top_ = top;
    bottom_ = bottom;
}

void StretchedRows::fill(int row, const std::vector<std::int32_t>& blocks) {
    std::vector<std::int32_t>& held = held_[slot(row)];
    missing_.clear();
    for (const std::int32_t block : blocks) {
        std::int32_t& source = held[static_cast<std::size_t>(block)];
        if (source != row) missing_.push_back(block);
        source = row;
    }
    stretch_blocks(plane_ + static_cast<std::ptrdiff_t>(row) * source_width_, across_.low.data(),
                   across_.high.data(), across_.low_weight.data(), across_.high_weight.data(),
                   missing_.data(), missing_.size(), rows_[slot(row)].data());
}

}  // namespace vkrt

// Rows of logits made as wide as the target.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "axis.h"

namespace vkrt {

// Keeps two neighbouring source rows at the target's width, only the blocks that were asked for.
class StretchedRows {
   public:
    // `plane` has rows of source_width logits; `across` must outlive this.
    StretchedRows(const float* plane, int source_width, const Axis& across);

    // Have the blocks ready in source rows `top` and `bottom`: the same row, or the next one.
    void move_to(int top, int bottom, const std::vector<std::int32_t>& blocks);

    const float* top() const { return rows_[slot(top_)].data(); }
    const float* bottom() const { return rows_[slot(bottom_)].data(); }

   private:
    // A row stays where it is when it turns from bottom to top.
    static std::size_t slot(int row) { return static_cast<std::size_t>(row & 1); }
    void fill(int row, const std::vector<std::int32_t>& blocks);

    const float* plane_;
    int source_width_;
    const Axis& across_;
    int top_ = 0, bottom_ = 0;
    std::array<std::vector<float>, 2> rows_;
    std::array<std::vector<std::int32_t>, 2> held_;  // of which source row each block is
    std::vector<std::int32_t> missing_;
};

}  // namespace vkrt

// One mask at the target's size, row by row, from its logits.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "axis.h"
#include "planes.h"
#include "stretch.h"
#include "tally.h"

namespace vkrt {

// A pixel belongs to the mask where its logit is above `threshold`; `offset` is how far the
// threshold moves either way to see whether the mask is stable.
struct Cut {
    float threshold;
    float offset;
};

// Pixels [begin, end) of a row, all in the mask or all outside.
struct Span {
    int begin;
    int end;
    bool inside;
};

// The thresholds (the cut's own, the upper, the lower), and how far a logit must be above or below
// each to settle the pixels around it.
struct Levels {
    explicit Levels(const Cut& cut);

    std::array<float, 3> at, above, below;
};

// Each row is in two parts: settled spans, where the logits around leave no doubt, and open blocks
// of kBlock pixels, interpolated and compared. Most of a photo is settled, and costs next to
// nothing; the result is as if every pixel had been interpolated.
class MaskRows {
   public:
    // The axes must outlive this. `down` leads from the plane's height, `across` from its width.
    MaskRows(const float* plane, const Size& source, const Axis& down, const Axis& across,
             const Cut& cut);

    // Compute target row y and count its pixels; rows go from top to bottom, each once.
    // Returns whether the settled spans and open blocks are others than in the row before.
    bool move_to(int y);

    const std::vector<Span>& settled() const { return settled_; }
    const std::vector<std::int32_t>& open() const { return open_; }
    int width() const { return across_.length; }

    // The row's pixels, 0 or 1, valid in the open blocks only; fillers at the end are 0.
    const std::uint8_t* pixels() const { return pixels_.data(); }

    // Return what was counted in the rows so far.
    Tally tally() const;

   private:
    void settle(int top, int bottom);
    const std::uint8_t* codes_of(int row);
    void add_settled(int begin, int end, unsigned code);

    const float* plane_;
    const Size source_;
    const Axis& down_;
    const Axis& across_;
    const Levels levels_;
    StretchedRows rows_;
    int top_ = -1;
    std::array<std::vector<std::uint8_t>, 2> codes_;
    std::array<int, 2> codes_row_{-1, -1};
    std::vector<std::uint8_t> block_codes_;
    std::vector<Span> settled_;
    std::vector<std::int32_t> open_;
    std::vector<std::uint8_t> pixels_;
    std::vector<std::uint8_t> seen_;  // 1 for each column that has a pixel of the mask
    Counts settled_counts_;           // of one row's settled spans
    Tally tally_;
};

}  // namespace vkrt

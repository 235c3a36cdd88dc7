#include "mask_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "clones.h"

namespace vkrt {

namespace {

// What a logit says of the pixels around it, if all four logits around agree: bits 0 to 2, that
// they are above the three levels, and bits 3 to 5, that they are below.
constexpr unsigned kAbove = 7;
constexpr int kBelowShift = 3;
constexpr unsigned kInside = 1, kInner = 2, kOuter = 4;

// Interpolation rounds five times, each by at most 2^-24 of the value; a level further than this
// share of itself from all four logits is on the same side of what they give. Near zero products
// may be rounded as a whole, and beyond kHuge weights of 0 may meet infinity.
constexpr float kDoubt = 1.0F / (1 << 20);
constexpr float kTiny = 1e-30F;
constexpr float kHuge = 1e37F;

constexpr int kByteBlocks = 255;  // so many blocks can be counted in bytes

bool is_settled(unsigned code) { return ((code | code >> kBelowShift) & kAbove) == kAbove; }

VKRT_CLONES void code_row(const float* VKRT_RESTRICT row, int length, const Levels& levels,
                          std::uint8_t* VKRT_RESTRICT codes) {
    const float above0 = levels.above[0], above1 = levels.above[1], above2 = levels.above[2];
    const float below0 = levels.below[0], below1 = levels.below[1], below2 = levels.below[2];
    for (int i = 0; i < length; ++i) {
        const float value = row[i];
        // Sums of truth values: compilers make no vectors of choices between other constants.
        const int above = (value > above0) + 2 * (value > above1) + 4 * (value > above2);
        const int below = (value < below0) + 2 * (value < below1) + 4 * (value < below2);
        const int usual = std::abs(value) < kHuge;
        codes[i] = static_cast<std::uint8_t>((above + 8 * below) * usual);
    }
}

VKRT_CLONES void agree(const std::uint8_t* VKRT_RESTRICT top,
                       const std::uint8_t* VKRT_RESTRICT bottom, int length,
                       std::uint8_t* VKRT_RESTRICT out) {
    for (int i = 0; i < length; ++i) out[i] = top[i] & bottom[i];
}

// Interpolate between two stretched rows and compare, in the given blocks.
VKRT_CLONES void threshold_blocks(const float* VKRT_RESTRICT top, const float* VKRT_RESTRICT bottom,
                                  float top_weight, float bottom_weight,
                                  const std::int32_t* VKRT_RESTRICT blocks, std::size_t count,
                                  const Levels& levels, std::uint8_t* VKRT_RESTRICT pixels,
                                  std::uint8_t* VKRT_RESTRICT seen, Counts& counts) {
    const float middle = levels.at[0], upper = levels.at[1], lower = levels.at[2];
    for (std::size_t done = 0; done < count; done += kByteBlocks) {
        const std::size_t end = std::min<std::size_t>(done + kByteBlocks, count);
        std::uint8_t area[kBlock] = {}, inner[kBlock] = {}, outer[kBlock] = {};
        for (std::size_t n = done; n < end; ++n) {
            const std::ptrdiff_t begin = static_cast<std::ptrdiff_t>(blocks[n]) * kBlock;
            for (int lane = 0; lane < kBlock; ++lane) {
                const std::ptrdiff_t i = begin + lane;
                const float value = top[i] * top_weight + bottom[i] * bottom_weight;
                const auto inside = static_cast<std::uint8_t>(value > middle ? 1 : 0);
                pixels[i] = inside;
                seen[i] |= inside;
                area[lane] = static_cast<std::uint8_t>(area[lane] + inside);
                inner[lane] = static_cast<std::uint8_t>(inner[lane] + (value > upper ? 1 : 0));
                outer[lane] = static_cast<std::uint8_t>(outer[lane] + (value > lower ? 1 : 0));
            }
        }
        std::int32_t areas = 0, inners = 0, outers = 0;
        for (int lane = 0; lane < kBlock; ++lane) {
            areas += area[lane];
            inners += inner[lane];
            outers += outer[lane];
        }
        counts.add({areas, inners, outers});
    }
}

}  // namespace

Levels::Levels(const Cut& cut)
    : at{cut.threshold, cut.threshold + cut.offset, cut.threshold - cut.offset} {
    for (std::size_t i = 0; i < at.size(); ++i) {
        const float doubt = std::abs(at[i]) * kDoubt + kTiny;
        above[i] = at[i] + doubt;
        below[i] = at[i] - doubt;
    }
}

MaskRows::MaskRows(const float* plane, const Size& source, const Axis& down, const Axis& across,
                   const Cut& cut)
    : plane_(plane),
      source_(source),
      down_(down),
      across_(across),
      levels_(cut),
      rows_(plane, source.width, across),
      block_codes_(static_cast<std::size_t>(source.width)),
      pixels_(across.low.size()),
      seen_(across.low.size()) {
    for (std::vector<std::uint8_t>& codes : codes_) {
        codes.resize(static_cast<std::size_t>(source.width));
    }
}

bool MaskRows::move_to(int y) {
    const auto at = static_cast<std::size_t>(y);
    const bool is_new = down_.low[at] != top_;
    if (is_new) {
        top_ = down_.low[at];
        settle(top_, down_.high[at]);
        rows_.move_to(top_, down_.high[at], open_);
    }
    Counts counts = settled_counts_;
    threshold_blocks(rows_.top(), rows_.bottom(), down_.low_weight[at], down_.high_weight[at],
                     open_.data(), open_.size(), levels_, pixels_.data(), seen_.data(), counts);
    tally_.counts.add(counts);
    if (counts.area > 0) tally_.box.add_row(y);
    return is_new;
}

// Part the pixels between two source rows into settled spans and open blocks.
void MaskRows::settle(int top, int bottom) {
    agree(codes_of(top), codes_of(bottom), source_.width, block_codes_.data());
    settled_.clear();
    open_.clear();
    settled_counts_ = {};
    for (int block = 0; block < across_.blocks(); ++block) {
        const int begin = block * kBlock;
        const int end = std::min(begin + kBlock, across_.length);
        const std::int32_t first = across_.low[static_cast<std::size_t>(begin)];
        const std::int32_t last = across_.high[static_cast<std::size_t>(end) - 1];
        unsigned code = ~0U;
        for (std::int32_t i = first; i <= last; ++i) {
            code &= block_codes_[static_cast<std::size_t>(i)];
        }
        if (is_settled(code)) {
            add_settled(begin, end, code);
        } else {
            open_.push_back(block);
        }
    }
}

const std::uint8_t* MaskRows::codes_of(int row) {
    const auto slot = static_cast<std::size_t>(row & 1);
    if (codes_row_[slot] != row) {
        code_row(plane_ + static_cast<std::ptrdiff_t>(row) * source_.width, source_.width, levels_,
                 codes_[slot].data());
        codes_row_[slot] = row;
    }
    return codes_[slot].data();
}

void MaskRows::add_settled(int begin, int end, unsigned code) {
    const bool inside = (code & kInside) != 0;
    const int length = end - begin;
    settled_counts_.area += inside ? length : 0;
    settled_counts_.inner += (code & kInner) != 0 ? length : 0;
    settled_counts_.outer += (code & kOuter) != 0 ? length : 0;
    if (inside) std::memset(seen_.data() + begin, 1, static_cast<std::size_t>(length));
    if (!settled_.empty() && settled_.back().end == begin && settled_.back().inside == inside) {
        settled_.back().end = end;
    } else {
        settled_.push_back({begin, end, inside});
    }
}

Tally MaskRows::tally() const {
    Tally found = tally_;
    found.box.add_columns(seen_.data(), width());
    return found;
}

}  // namespace vkrt

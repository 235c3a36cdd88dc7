#include "masks.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <numeric>

#include "axis.h"
#include "bands.h"
#include "clones.h"
#include "parallel.h"
#include "stretch.h"

namespace vkrt {

namespace {

VKRT_CLONES void blend_row(const float* VKRT_RESTRICT top, const float* VKRT_RESTRICT bottom,
                           float top_weight, float bottom_weight, int length,
                           float* VKRT_RESTRICT out) {
    for (int i = 0; i < length; ++i) out[i] = top[i] * top_weight + bottom[i] * bottom_weight;
}

// Return how many bytes are not 0, and mark their places in `seen`.
VKRT_CLONES std::int32_t count_row(const std::uint8_t* VKRT_RESTRICT row, int length,
                                   std::uint8_t* VKRT_RESTRICT seen) {
    std::int32_t count = 0;
    for (int i = 0; i < length; ++i) {
        const auto inside = static_cast<std::uint8_t>(row[i] != 0 ? 1 : 0);
        seen[i] |= inside;
        count += inside;
    }
    return count;
}

std::uint8_t pack_byte(const std::uint8_t* pixels) {
    unsigned bits = 0;
    for (int i = 0; i < 8; ++i) bits = bits << 1 | pixels[i];
    return static_cast<std::uint8_t>(bits);
}

void write_bytes(const MaskRows& rows, std::uint8_t* out) {
    for (const Span& span : rows.settled()) {
        std::memset(out + span.begin, span.inside ? 1 : 0,
                    static_cast<std::size_t>(span.end - span.begin));
    }
    for (const std::int32_t block : rows.open()) {
        const int begin = block * kBlock;
        const int length = std::min(kBlock, rows.width() - begin);
        std::memcpy(out + begin, rows.pixels() + begin, static_cast<std::size_t>(length));
    }
}

void write_bits(const MaskRows& rows, std::uint8_t* out) {
    for (const Span& span : rows.settled()) {
        const int begin = span.begin / 8, end = (span.end + 7) / 8;
        std::memset(out + begin, span.inside ? 0xFF : 0, static_cast<std::size_t>(end - begin));
        const int fillers = 8 * end - span.end;
        if (span.inside) out[end - 1] = static_cast<std::uint8_t>(0xFF << fillers);
    }
    for (const std::int32_t block : rows.open()) {
        const int begin = block * kBlock;
        const int end = std::min(begin + kBlock, rows.width());
        for (int x = begin; x < end; x += 8) out[x / 8] = pack_byte(rows.pixels() + x);
    }
}

}  // namespace

void upsample_logits(const Logits& logits, const Size& size, int threads, float* out) {
    const Axis down = make_axis(logits.height, size.height);
    const Axis across = make_axis(logits.width, size.width);
    const std::ptrdiff_t plane = static_cast<std::ptrdiff_t>(logits.height) * logits.width;
    const std::vector<Band> bands = make_bands(logits.count, size.height, threads);
    std::vector<std::int32_t> all(static_cast<std::size_t>(across.blocks()));
    std::iota(all.begin(), all.end(), 0);
    parallel_for(static_cast<std::int64_t>(bands.size()), threads, [&](std::int64_t task) {
        const Band& band = bands[static_cast<std::size_t>(task)];
        StretchedRows rows(logits.values + band.mask * plane, logits.width, across);
        for (int y = band.begin; y < band.end; ++y) {
            const auto at = static_cast<std::size_t>(y);
            rows.move_to(down.low[at], down.high[at], all);
            const std::ptrdiff_t line = static_cast<std::ptrdiff_t>(band.mask) * size.height + y;
            blend_row(rows.top(), rows.bottom(), down.low_weight[at], down.high_weight[at],
                      size.width, out + line * size.width);
        }
    });
}

std::vector<Tally> binarize_logits(const Logits& logits, const Size& size, const Cut& cut,
                                   Layout layout, int threads, std::uint8_t* out) {
    const Axis down = make_axis(logits.height, size.height);
    const Axis across = make_axis(logits.width, size.width);
    const std::ptrdiff_t plane = static_cast<std::ptrdiff_t>(logits.height) * logits.width;
    const auto write = layout == Layout::kBytes ? write_bytes : write_bits;
    const std::ptrdiff_t pitch = layout == Layout::kBytes ? size.width : (size.width + 7) / 8;
    const std::vector<Band> bands = make_bands(logits.count, size.height, threads);
    std::vector<Tally> parts(bands.size());
    parallel_for(static_cast<std::int64_t>(bands.size()), threads, [&](std::int64_t task) {
        const Band& band = bands[static_cast<std::size_t>(task)];
        MaskRows rows(logits.values + band.mask * plane, {logits.height, logits.width}, down,
                      across, cut);
        for (int y = band.begin; y < band.end; ++y) {
            rows.move_to(y);
            write(rows, out + (static_cast<std::ptrdiff_t>(band.mask) * size.height + y) * pitch);
        }
        parts[static_cast<std::size_t>(task)] = rows.tally();
    });
    return add_up(bands, parts, logits.count);
}

std::vector<Tally> measure_masks(const Planes<const std::uint8_t>& masks, int threads) {
    const std::vector<Band> bands = make_bands(masks.count, masks.height, threads);
    std::vector<Tally> parts(bands.size());
    parallel_for(static_cast<std::int64_t>(bands.size()), threads, [&](std::int64_t task) {
        const Band& band = bands[static_cast<std::size_t>(task)];
        std::vector<std::uint8_t> seen(static_cast<std::size_t>(masks.width));
        Tally tally;
        for (int y = band.begin; y < band.end; ++y) {
            const std::ptrdiff_t line = static_cast<std::ptrdiff_t>(band.mask) * masks.height + y;
            const std::int32_t area =
                count_row(masks.values + line * masks.width, masks.width, seen.data());
            tally.counts.area += area;
            if (area > 0) tally.box.add_row(y);
        }
        tally.box.add_columns(seen.data(), masks.width);
        parts[static_cast<std::size_t>(task)] = tally;
    });
    return add_up(bands, parts, masks.count);
}

}  // namespace vkrt

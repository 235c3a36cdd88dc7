#include "rle.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "axis.h"
#include "bands.h"
#include "parallel.h"

namespace vkrt {

namespace {

constexpr int kChunk = 8;

// A pixel that differs from the one above it; above the first row and below the last are zeros.
// `group` is what toggles are sorted by, the column or the row, and `place` the other one.
struct Toggle {
    std::int32_t group;
    std::int32_t place;
};

// Places of toggles by group: those of group g are [starts[g], starts[g + 1]).
struct Grouped {
    std::vector<std::size_t> starts;
    std::vector<std::int32_t> places;
};

// Sort by group; within one, the order stays.
Grouped sort_toggles(const std::vector<Toggle>* parts, std::size_t count, int groups) {
    Grouped sorted;
    sorted.starts.assign(static_cast<std::size_t>(groups) + 1, 0);
    for (const auto* part = parts; part != parts + count; ++part) {
        for (const Toggle& toggle : *part) {
            ++sorted.starts[static_cast<std::size_t>(toggle.group) + 1];
        }
    }
    std::partial_sum(sorted.starts.begin(), sorted.starts.end(), sorted.starts.begin());
    sorted.places.resize(sorted.starts.back());
    std::vector<std::size_t> next(sorted.starts.begin(), sorted.starts.end() - 1);
    for (const auto* part = parts; part != parts + count; ++part) {
        for (const Toggle& toggle : *part) {
            sorted.places[next[static_cast<std::size_t>(toggle.group)]++] = toggle.place;
        }
    }
    return sorted;
}

// Collects the toggles of a band by column, row by row. A band starts from zeros and is closed
// with zeros: where two bands meet, that gives pairs of toggles, which cancel.
class ToggleRows {
   public:
    explicit ToggleRows(int width)
        : last_(static_cast<std::size_t>(width)),
          zeros_(static_cast<std::size_t>(width)),
          ones_(static_cast<std::size_t>(width), 1) {}

    // Take pixels [begin, end) of row y; `pixels` is the whole row.
    void add(int y, int begin, int end, const std::uint8_t* pixels) {
        for (int x = begin; x < end; x += kChunk) {
            const int length = std::min(kChunk, end - x);
            if (length == kChunk && std::memcmp(pixels + x, last_.data() + x, kChunk) == 0) {
                continue;
            }
            for (int i = x; i < x + length; ++i) {
                const bool was = last_[static_cast<std::size_t>(i)] != 0;
                if ((pixels[i] != 0) != was) found_.push_back({i, y});
            }
        }
        std::memcpy(last_.data() + begin, pixels + begin, static_cast<std::size_t>(end - begin));
    }

    void add(int y, const Span& span) {
        add(y, span.begin, span.end, span.inside ? ones_.data() : zeros_.data());
    }

    std::vector<Toggle> close(int y) {
        add(y, {0, static_cast<int>(last_.size()), false});
        return std::move(found_);
    }

   private:
    std::vector<std::uint8_t> last_, zeros_, ones_;
    std::vector<Toggle> found_;
};

// Return the runs between the toggles of a mask's bands.
RunLengths make_runs(const std::vector<Toggle>* bands, std::size_t count, const Size& size) {
    const Grouped columns = sort_toggles(bands, count, size.width);
    std::vector<std::int64_t> places;
    for (int x = 0; x < size.width; ++x) {
        const auto column = static_cast<std::size_t>(x);
        for (std::size_t i = columns.starts[column]; i < columns.starts[column + 1]; ++i) {
            const std::int64_t place =
                static_cast<std::int64_t>(x) * size.height + columns.places[i];
            if (!places.empty() && places.back() == place) {
                places.pop_back();
            } else {
                places.push_back(place);
            }
        }
    }
    const std::int64_t end = static_cast<std::int64_t>(size.width) * size.height;
    if (places.empty() || places.back() != end) places.push_back(end);
    RunLengths runs;
    runs.reserve(places.size());
    std::int64_t begin = 0;
    for (const std::int64_t place : places) {
        runs.push_back(static_cast<std::uint32_t>(place - begin));
        begin = place;
    }
    return runs;
}

std::vector<RunLengths> make_all_runs(const std::vector<std::vector<Toggle>>& bands, int masks,
                                      const Size& size, int threads) {
    std::vector<RunLengths> all(static_cast<std::size_t>(masks));
    const std::size_t each = bands.size() / all.size();
    parallel_for(masks, threads, [&](std::int64_t mask) {
        const auto at = static_cast<std::size_t>(mask);
        all[at] = make_runs(bands.data() + at * each, each, size);
    });
    return all;
}

// Return the toggles of the columns that a run of ones goes through, by row.
void add_run(std::int64_t begin, std::int64_t end, int height, std::vector<Toggle>& toggles) {
    while (begin < end) {
        const auto x = static_cast<std::int32_t>(begin / height);
        const std::int64_t top = begin % height;
        const std::int64_t bottom = std::min<std::int64_t>(top + end - begin, height);
        toggles.push_back({static_cast<std::int32_t>(top), x});
        if (bottom < height) toggles.push_back({static_cast<std::int32_t>(bottom), x});
        begin += bottom - top;
    }
}

}  // namespace

std::vector<RunLengths> encode_masks(const Planes<const std::uint8_t>& masks, int threads) {
    const std::vector<Band> bands = make_bands(masks.count, masks.height, threads);
    std::vector<std::vector<Toggle>> parts(bands.size());
    parallel_for(static_cast<std::int64_t>(bands.size()), threads, [&](std::int64_t task) {
        const Band& band = bands[static_cast<std::size_t>(task)];
        ToggleRows toggles(masks.width);
        for (int y = band.begin; y < band.end; ++y) {
            const std::ptrdiff_t line = static_cast<std::ptrdiff_t>(band.mask) * masks.height + y;
            toggles.add(y, 0, masks.width, masks.values + line * masks.width);
        }
        parts[static_cast<std::size_t>(task)] = toggles.close(band.end);
    });
    return make_all_runs(parts, masks.count, {masks.height, masks.width}, threads);
}

EncodedMasks encode_logits(const Logits& logits, const Size& size, const Cut& cut, int threads) {
    const Axis down = make_axis(logits.height, size.height);
    const Axis across = make_axis(logits.width, size.width);
    const std::ptrdiff_t plane = static_cast<std::ptrdiff_t>(logits.height) * logits.width;
    const std::vector<Band> bands = make_bands(logits.count, size.height, threads);
    std::vector<std::vector<Toggle>> parts(bands.size());
    std::vector<Tally> tallies(bands.size());
    parallel_for(static_cast<std::int64_t>(bands.size()), threads, [&](std::int64_t task) {
        const Band& band = bands[static_cast<std::size_t>(task)];
        MaskRows rows(logits.values + band.mask * plane, {logits.height, logits.width}, down,
                      across, cut);
        ToggleRows toggles(size.width);
        for (int y = band.begin; y < band.end; ++y) {
            if (rows.move_to(y)) {
                for (const Span& span : rows.settled()) toggles.add(y, span);
            }
            for (const std::int32_t block : rows.open()) {
                const int begin = block * kBlock;
                toggles.add(y, begin, std::min(begin + kBlock, size.width), rows.pixels());
            }
        }
        parts[static_cast<std::size_t>(task)] = toggles.close(band.end);
        tallies[static_cast<std::size_t>(task)] = rows.tally();
    });
    return {make_all_runs(parts, logits.count, size, threads),
            add_up(bands, tallies, logits.count)};
}

void decode_runs(const std::uint32_t* runs, std::size_t count, const Size& size,
                 std::uint8_t* out) {
    const std::int64_t pixels = static_cast<std::int64_t>(size.height) * size.width;
    std::vector<Toggle> toggles;
    std::int64_t begin = 0;
    for (std::size_t i = 0; i < count; ++i) {
        const std::int64_t end = begin + runs[i];
        if (end > pixels) throw std::invalid_argument("the runs are longer than the mask");
        if (i % 2 == 1) add_run(begin, end, size.height, toggles);
        begin = end;
    }
    if (begin != pixels) throw std::invalid_argument("the runs are shorter than the mask");
    const Grouped rows = sort_toggles(&toggles, 1, size.height);
    std::vector<std::uint8_t> line(static_cast<std::size_t>(size.width));
    for (int y = 0; y < size.height; ++y) {
        const auto row = static_cast<std::size_t>(y);
        for (std::size_t i = rows.starts[row]; i < rows.starts[row + 1]; ++i) {
            line[static_cast<std::size_t>(rows.places[i])] ^= 1;
        }
        std::memcpy(out + static_cast<std::ptrdiff_t>(y) * size.width, line.data(), line.size());
    }
}

}  // namespace vkrt

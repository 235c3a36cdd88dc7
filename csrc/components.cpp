#include "components.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <vector>

#include "parallel.h"

namespace vkrt {

namespace {

constexpr float kMoved = 10.0F;
enum Kind : std::uint8_t { kBackground = 0, kForeground = 1, kNeither = 2 };

// Pixels [first, end) of a row, all of the wanted value.
struct Run {
    std::int32_t row;
    std::int32_t first;
    std::int32_t end;
};

// Union-find over runs; a root's area is that of its component.
class Components {
   public:
    Components(const std::uint8_t* plane, int height, int width, std::uint8_t value) {
        std::size_t above = 0;  // the runs of the row above are [above, begin)
        std::size_t begin = 0;
        for (int row = 0; row < height; ++row) {
            find_runs(plane + static_cast<std::ptrdiff_t>(row) * width, row, width, value);
            join_rows(above, begin);
            above = begin;
            begin = runs_.size();
        }
    }

    // Return the runs of the components with at most max_area pixels.
    std::vector<Run> small(std::int64_t max_area) {
        std::vector<Run> found;
        for (std::size_t i = 0; i < runs_.size(); ++i) {
            if (areas_[root(i)] <= max_area) found.push_back(runs_[i]);
        }
        return found;
    }

   private:
    void find_runs(const std::uint8_t* pixels, int row, int width, std::uint8_t value) {
        int x = 0;
        while (x < width) {
            const void* next = std::memchr(pixels + x, value, static_cast<std::size_t>(width - x));
            if (next == nullptr) return;
            const int first = static_cast<int>(static_cast<const std::uint8_t*>(next) - pixels);
            x = first + 1;
            while (x < width && pixels[x] == value) ++x;
            parents_.push_back(runs_.size());
            runs_.push_back({row, first, x});
            areas_.push_back(x - first);
        }
    }

    // Join the runs from `begin` on with those of [above, begin) that they touch, also at a corner.
    void join_rows(std::size_t above, std::size_t begin) {
        std::size_t upper = above;
        for (std::size_t lower = begin; lower < runs_.size(); ++lower) {
            while (upper < begin && runs_[upper].end < runs_[lower].first) ++upper;
            for (std::size_t i = upper; i < begin && runs_[i].first <= runs_[lower].end; ++i) {
                join(i, lower);
            }
        }
    }

    std::size_t root(std::size_t i) {
        while (parents_[i] != i) {
            parents_[i] = parents_[parents_[i]];
            i = parents_[i];
        }
        return i;
    }

    void join(std::size_t a, std::size_t b) {
        a = root(a);
        b = root(b);
        if (a == b) return;
        if (areas_[a] < areas_[b]) std::swap(a, b);
        parents_[b] = a;
        areas_[a] += areas_[b];
    }

    std::vector<Run> runs_;
    std::vector<std::size_t> parents_;
    std::vector<std::int64_t> areas_;
};

template <typename T>
void paint(const std::vector<Run>& runs, int width, T value, T* plane) {
    for (const Run& run : runs) {
        T* row = plane + static_cast<std::ptrdiff_t>(run.row) * width;
        std::fill(row + run.first, row + run.end, value);
    }
}

// NaN is of neither kind, as in comparisons.
std::vector<std::uint8_t> classify(const float* plane, std::ptrdiff_t size, float threshold) {
    std::vector<std::uint8_t> kinds(static_cast<std::size_t>(size));
    for (std::ptrdiff_t i = 0; i < size; ++i) {
        const Kind kind = plane[i] > threshold    ? kForeground
                          : plane[i] <= threshold ? kBackground
                                                  : kNeither;
        kinds[static_cast<std::size_t>(i)] = kind;
    }
    return kinds;
}

}  // namespace

void flip_small_components(const Planes<std::uint8_t>& masks, std::uint8_t value,
                           std::int64_t max_area, int threads) {
    const std::ptrdiff_t size = static_cast<std::ptrdiff_t>(masks.height) * masks.width;
    parallel_for(masks.count, threads, [&](std::int64_t mask) {
        std::uint8_t* plane = masks.values + mask * size;
        Components components(plane, masks.height, masks.width, value);
        paint(components.small(max_area), masks.width, static_cast<std::uint8_t>(1 - value), plane);
    });
}

void clean_logits(const Planes<float>& logits, const Cleaning& cleaning, int threads) {
    const std::ptrdiff_t size = static_cast<std::ptrdiff_t>(logits.height) * logits.width;
    parallel_for(logits.count, threads, [&](std::int64_t index) {
        float* plane = logits.values + index * size;
        const std::vector<std::uint8_t> kinds = classify(plane, size, cleaning.threshold);
        const auto clean = [&](Kind kind, std::int64_t max_area, float value) {
            if (max_area <= 0) return;
            Components components(kinds.data(), logits.height, logits.width, kind);
            paint(components.small(max_area), logits.width, value, plane);
        };
        clean(kBackground, cleaning.max_hole_area, cleaning.threshold + kMoved);
        clean(kForeground, cleaning.max_sprinkle_area, cleaning.threshold - kMoved);
    });
}

}  // namespace vkrt

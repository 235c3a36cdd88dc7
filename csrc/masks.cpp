#include "masks.h"

#include <algorithm>
#include <cstddef>
#include <functional>

#include "clones.h"
#include "parallel.h"

namespace vkrt {

namespace {

constexpr int kFewestRows = 32;  // of a task: below, stretching rows twice costs more than it gains

// For each target index, the two source indices around it and their weights.
struct Axis {
    std::vector<std::int32_t> low, high;
    std::vector<float> low_weight, high_weight;
};

Axis make_axis(int source, int target) {
    // float32 on purpose, so that a pixel at the threshold falls on the side where PyTorch puts it.
    const float scale = static_cast<float>(source) / static_cast<float>(target);
    Axis axis;
    for (int i = 0; i < target; ++i) {
        const float at = std::max(scale * (static_cast<float>(i) + 0.5F) - 0.5F, 0.0F);
        const int low = std::min(static_cast<int>(at), source - 1);
        const float weight = std::clamp(at - static_cast<float>(low), 0.0F, 1.0F);
        axis.low.push_back(low);
        axis.high.push_back(std::min(low + 1, source - 1));
        axis.low_weight.push_back(1.0F - weight);
        axis.high_weight.push_back(weight);
    }
    return axis;
}

VKRT_CLONES void stretch_row(const float* VKRT_RESTRICT row, const std::int32_t* VKRT_RESTRICT low,
                             const std::int32_t* VKRT_RESTRICT high,
                             const float* VKRT_RESTRICT low_weight,
                             const float* VKRT_RESTRICT high_weight, int length,
                             float* VKRT_RESTRICT out) {
    for (int i = 0; i < length; ++i) {
        out[i] = row[low[i]] * low_weight[i] + row[high[i]] * high_weight[i];
    }
}

VKRT_CLONES void blend_row(const float* VKRT_RESTRICT top, const float* VKRT_RESTRICT bottom,
                           float top_weight, float bottom_weight, int length,
                           float* VKRT_RESTRICT out) {
    for (int i = 0; i < length; ++i) out[i] = top[i] * top_weight + bottom[i] * bottom_weight;
}

VKRT_CLONES void threshold_row(const float* VKRT_RESTRICT top, const float* VKRT_RESTRICT bottom,
                               float top_weight, float bottom_weight, int length, const Cut& cut,
                               std::uint8_t* VKRT_RESTRICT out, Counts& counts) {
    const float middle = cut.threshold;
    const float upper = cut.threshold + cut.offset;
    const float lower = cut.threshold - cut.offset;
    std::int32_t area = 0, inner = 0, outer = 0;
    for (int i = 0; i < length; ++i) {
        const float value = top[i] * top_weight + bottom[i] * bottom_weight;
        const std::int32_t inside = value > middle ? 1 : 0;
        out[i] = static_cast<std::uint8_t>(inside);
        area += inside;
        inner += value > upper ? 1 : 0;
        outer += value > lower ? 1 : 0;
    }
    counts.area += area;
    counts.inner += inner;
    counts.outer += outer;
}

// Keeps the two source rows around the current target row, already as wide as the target.
class StretchedRows {
   public:
    StretchedRows(const float* plane, int source_width, const Axis& across)
        : plane_(plane),
          source_width_(source_width),
          across_(across),
          top_(across.low.size()),
          bottom_(across.low.size()) {}

    void move_to(int top, int bottom) {
        if (top == bottom_index_) {
            top_.swap(bottom_);
            std::swap(top_index_, bottom_index_);
        }
        fill(top, top_index_, top_);
        fill(bottom, bottom_index_, bottom_);
    }

    const float* top() const { return top_.data(); }
    const float* bottom() const { return bottom_.data(); }

   private:
    void fill(int wanted, int& index, std::vector<float>& row) {
        if (wanted == index) return;
        stretch_row(plane_ + static_cast<std::ptrdiff_t>(wanted) * source_width_,
                    across_.low.data(), across_.high.data(), across_.low_weight.data(),
                    across_.high_weight.data(), static_cast<int>(row.size()), row.data());
        index = wanted;
    }

    const float* plane_;
    int source_width_;
    const Axis& across_;
    std::vector<float> top_, bottom_;
    int top_index_ = -1, bottom_index_ = -1;
};

// The target rows [begin, end) of one mask.
struct Band {
    int mask;
    int begin;
    int end;
};

std::vector<Band> make_bands(int masks, int height, int threads) {
    const int wanted = std::max(1, 4 * thread_count(threads) / masks);
    const int bands = std::clamp(height / kFewestRows, 1, wanted);
    std::vector<Band> all;
    for (int mask = 0; mask < masks; ++mask) {
        for (int band = 0; band < bands; ++band) {
            const auto edge = [&](int i) {
                return static_cast<int>(static_cast<std::int64_t>(height) * i / bands);
            };
            all.push_back({mask, edge(band), edge(band + 1)});
        }
    }
    return all;
}

// What is known of a target row: its place in the output, its source rows and their weights.
struct Row {
    std::ptrdiff_t offset;
    const float* top;
    const float* bottom;
    float top_weight;
    float bottom_weight;
    std::size_t band;
};

void for_each_row(const Logits& logits, const Size& size, const std::vector<Band>& bands,
                  int threads, const std::function<void(const Row&)>& visit) {
    const Axis down = make_axis(logits.height, size.height);
    const Axis across = make_axis(logits.width, size.width);
    const std::ptrdiff_t source_plane = static_cast<std::ptrdiff_t>(logits.height) * logits.width;
    parallel_for(static_cast<std::int64_t>(bands.size()), threads, [&](std::int64_t task) {
        const auto index = static_cast<std::size_t>(task);
        const Band& band = bands[index];
        StretchedRows rows(logits.values + band.mask * source_plane, logits.width, across);
        for (int y = band.begin; y < band.end; ++y) {
            const auto at = static_cast<std::size_t>(y);
            rows.move_to(down.low[at], down.high[at]);
            const std::ptrdiff_t line =
                static_cast<std::ptrdiff_t>(band.mask) * size.height + y;
            visit({line * size.width, rows.top(), rows.bottom(), down.low_weight[at],
                   down.high_weight[at], index});
        }
    });
}

}  // namespace

void upsample_logits(const Logits& logits, const Size& size, int threads, float* out) {
    const std::vector<Band> bands = make_bands(logits.count, size.height, threads);
    for_each_row(logits, size, bands, threads, [&](const Row& row) {
        blend_row(row.top, row.bottom, row.top_weight, row.bottom_weight, size.width,
                  out + row.offset);
    });
}

std::vector<Counts> binarize_logits(const Logits& logits, const Size& size, const Cut& cut,
                                    int threads, std::uint8_t* out) {
    const std::vector<Band> bands = make_bands(logits.count, size.height, threads);
    std::vector<Counts> parts(bands.size());
    for_each_row(logits, size, bands, threads, [&](const Row& row) {
        threshold_row(row.top, row.bottom, row.top_weight, row.bottom_weight, size.width, cut,
                      out + row.offset, parts[row.band]);
    });
    std::vector<Counts> totals(static_cast<std::size_t>(logits.count));
    for (std::size_t i = 0; i < bands.size(); ++i) {
        Counts& total = totals[static_cast<std::size_t>(bands[i].mask)];
        total.area += parts[i].area;
        total.inner += parts[i].inner;
        total.outer += parts[i].outer;
    }
    return totals;
}

}  // namespace vkrt

#include "panels.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "bf16.h"

namespace vkrt {

namespace {

constexpr std::size_t kCacheLine = 64;

std::ptrdiff_t panels_for(std::ptrdiff_t queries, std::ptrdiff_t lanes) {
    return (queries + lanes - 1) / lanes;
}

}  // namespace

Panels::Panels(std::ptrdiff_t most, std::ptrdiff_t depth, std::ptrdiff_t width, const Tile& tile)
    : tile_(tile), depth_(depth), width_(width), lanes_(tile.queries) {
    const std::ptrdiff_t of_panels = panels_for(most, lanes_) * floats_of_panel();
    const auto floats = static_cast<std::size_t>(of_panels + kBlockKeys * lanes_);
    memory_.resize(floats + kCacheLine / sizeof(float));
    // A vector that lies across two cache lines is read at half the speed.
    void* begin = memory_.data();
    std::size_t room = memory_.size() * sizeof(float);
    std::align(kCacheLine, floats * sizeof(float), begin, room);
    weights_ = static_cast<float*>(begin);
    panels_ = weights_ + kBlockKeys * lanes_;
}

std::ptrdiff_t Panels::floats_of_panel() const {
    return (tile_.units(depth_) + width_ + 2) * lanes_;
}

Panel Panels::at(std::ptrdiff_t index) const {
    float* queries = panels_ + index * floats_of_panel();
    float* sums = queries + tile_.units(depth_) * lanes_;
    float* largest = sums + width_ * lanes_;
    return {depth_, width_, queries, weights_, largest, largest + lanes_, sums};
}

void Panels::start(const Rows& queries, std::ptrdiff_t count) {
    count_ = count;
    size_ = panels_for(count, lanes_);
    for (std::ptrdiff_t i = 0; i < size_; ++i) {
        const std::ptrdiff_t first = i * lanes_;
        fill(at(i), queries, first, std::min(count - first, lanes_));
    }
}

void Panels::fill(const Panel& panel, const Rows& queries, std::ptrdiff_t first,
                  std::ptrdiff_t count) {
    const float scale = kLog2E / std::sqrt(static_cast<float>(depth_));
    std::fill_n(panel.queries, tile_.units(depth_) * lanes_, 0.0F);
    for (std::ptrdiff_t lane = 0; lane < count; ++lane) {
        const float* query = queries.at(first + lane);
        float* to = panel.queries + lane;
        if (tile_.numbers == 2) {
            for (std::ptrdiff_t i = 0; i < depth_; i += 2, to += lanes_) {
                store_pair(query[i] * scale, i + 1 < depth_ ? query[i + 1] * scale : 0.0F, to);
            }
        } else {
            for (std::ptrdiff_t i = 0; i < depth_; ++i, to += lanes_) *to = query[i] * scale;
        }
    }
    std::fill_n(panel.largest, lanes_, -std::numeric_limits<float>::infinity());
    std::fill_n(panel.total, lanes_, 0.0F);
    std::fill_n(panel.sums, width_ * lanes_, 0.0F);
}

void Panels::finish(float* out, std::ptrdiff_t stride) const {
    for (std::ptrdiff_t query = 0; query < count_; ++query) {
        const Panel panel = at(query / lanes_);
        const std::ptrdiff_t lane = query % lanes_;
        // Without a key there is no weight at all.
        const float total = panel.total[lane] == 0.0F ? 1.0F : panel.total[lane];
        float* to = out + query * stride;
        for (std::ptrdiff_t i = 0; i < width_; ++i) to[i] = panel.sums[i * lanes_ + lane] / total;
    }
}

}  // namespace vkrt

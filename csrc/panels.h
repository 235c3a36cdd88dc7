// Queries laid out for a Tile, panel by panel, and their results.
#pragma once

#include <cstddef>
#include <vector>

#include "tile.h"

namespace vkrt {

class Panels {
   public:
    // Room for `most` queries and values of these sizes.
    Panels(std::ptrdiff_t most, std::ptrdiff_t depth, std::ptrdiff_t width, const Tile& tile);

    // Take (count, depth) queries, and know nothing of their softmax.
    void start(const float* queries, std::ptrdiff_t count);

    std::ptrdiff_t size() const { return size_; }
    Panel at(std::ptrdiff_t index) const;

    // Write what became of the queries, (count, width).
    void finish(float* out) const;

   private:
    void fill(const Panel& panel, const float* queries, std::ptrdiff_t count);

    std::ptrdiff_t depth_, width_, lanes_;
    std::ptrdiff_t count_ = 0, size_ = 0;
    std::vector<float> memory_;
    float* weights_;  // of whichever panel is being worked on
    float* panels_;
};

}  // namespace vkrt

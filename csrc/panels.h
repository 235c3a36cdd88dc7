// Queries laid out for a Tile, panel by panel, and their results.
#pragma once

#include <cstddef>
#include <vector>

#include "rows.h"
#include "tile.h"

namespace vkrt {

class Panels {
   public:
    // Room for `most` queries and values of these sizes, for a Tile that must outlive this.
    Panels(std::ptrdiff_t most, std::ptrdiff_t depth, std::ptrdiff_t width, const Tile& tile);

    // Take `count` queries, and know nothing of their softmax.
    void start(const Rows& queries, std::ptrdiff_t count);

    std::ptrdiff_t size() const { return size_; }
    Panel at(std::ptrdiff_t index) const;

    // Write what became of the queries: rows of `width`, so many floats from one to the next.
    void finish(float* out, std::ptrdiff_t stride) const;

   private:
    std::ptrdiff_t floats_of_panel() const;
    void fill(const Panel& panel, const Rows& queries, std::ptrdiff_t first, std::ptrdiff_t count);

    const Tile& tile_;
    std::ptrdiff_t depth_, width_, lanes_;
    std::ptrdiff_t count_ = 0, size_ = 0;
    std::vector<float> memory_;
    float* weights_;  // of whichever panel is being worked on
    float* panels_;
};

}  // namespace vkrt

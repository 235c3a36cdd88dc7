// What is counted while a mask is made: areas and the box.
#pragma once

#include <cstdint>
#include <limits>

namespace vkrt {

// Pixels above the threshold, above the upper one and above the lower one.
struct Counts {
    std::int64_t area = 0;
    std::int64_t inner = 0;
    std::int64_t outer = 0;

    void add(const Counts& other);
};

// The first and last column and row that have a pixel.
struct Box {
    int x0 = std::numeric_limits<int>::max();
    int y0 = std::numeric_limits<int>::max();
    int x1 = -1;
    int y1 = -1;

    bool is_empty() const { return x1 < 0; }
    void add(const Box& other);
    // Take in [0, width) columns as `seen` says: 1 where there is a pixel.
    void add_columns(const std::uint8_t* seen, int width);
    void add_row(int y);
};

struct Tally {
    Counts counts;
    Box box;

    void add(const Tally& other);
};

}  // namespace vkrt

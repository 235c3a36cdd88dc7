#include "tally.h"

#include <algorithm>

namespace vkrt {

void Counts::add(const Counts& other) {
    area += other.area;
    inner += other.inner;
    outer += other.outer;
}

void Box::add(const Box& other) {
    x0 = std::min(x0, other.x0);
    y0 = std::min(y0, other.y0);
    x1 = std::max(x1, other.x1);
    y1 = std::max(y1, other.y1);
}

void Box::add_columns(const std::uint8_t* seen, int width) {
    int first = 0, last = width - 1;
    while (first < width && seen[first] == 0) ++first;
    if (first == width) return;
    while (seen[last] == 0) --last;
    x0 = std::min(x0, first);
    x1 = std::max(x1, last);
}

void Box::add_row(int y) {
    y0 = std::min(y0, y);
    y1 = std::max(y1, y);
}

void Tally::add(const Tally& other) {
    counts.add(other.counts);
    box.add(other.box);
}

}  // namespace vkrt

// Bilinear interpolation along one axis, corners not aligned.
#pragma once

#include <cstdint>
#include <vector>

namespace vkrt {

// Targets come in blocks of this many: a length that the compiler knows makes the better loop.
constexpr int kBlock = 32;

// For each of `length` target indices, the two source indices around it and their weights. Fillers
// up to whole blocks follow; their weights are NaN, so that what they give is above no threshold.
struct Axis {
    int length;
    std::vector<std::int32_t> low, high;
    std::vector<float> low_weight, high_weight;

    int blocks() const { return static_cast<int>(low.size()) / kBlock; }
};

Axis make_axis(int source, int target);

}  // namespace vkrt

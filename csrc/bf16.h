// Two bf16 in the four bytes of a float, as a Tile takes them that multiplies pairs.
#pragma once

#include <cstdint>
#include <cstring>

namespace vkrt {

// Return the upper half of x, rounded to the nearest, ties to even; NaN stays NaN.
inline std::uint32_t bf16_of(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    const std::uint32_t rounded = (bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16;
    return x == x ? rounded : (bits >> 16) | 0x40U;
}

// Write a pair, the first number in the low half.
inline void store_pair(float first, float second, float* to) {
    const std::uint32_t pair = bf16_of(first) | bf16_of(second) << 16;
    std::memcpy(to, &pair, sizeof(pair));
}

}  // namespace vkrt

// Sizes that come from outside, multiplied without overflow.
#pragma once

#include <cstddef>
#include <initializer_list>

namespace vkrt {

// Return the product of the sizes.
// Throws std::invalid_argument where a size is below 1 or above 2^31 - 1, or where the product
// times item_bytes does not fit a ptrdiff_t.
std::ptrdiff_t checked_product(std::initializer_list<std::ptrdiff_t> sizes,
                               std::ptrdiff_t item_bytes);

}  // namespace vkrt

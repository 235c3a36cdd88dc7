#include "extent.h"

#include <limits>
#include <stdexcept>
#include <string>

namespace vkrt {

std::ptrdiff_t checked_product(std::initializer_list<std::ptrdiff_t> sizes,
                               std::ptrdiff_t item_bytes) {
    constexpr std::ptrdiff_t largest = std::numeric_limits<int>::max();
    const std::ptrdiff_t limit = std::numeric_limits<std::ptrdiff_t>::max() / item_bytes;
    std::ptrdiff_t product = 1;
    for (const std::ptrdiff_t size : sizes) {
        if (size < 1 || size > largest) {
            throw std::invalid_argument("a size of " + std::to_string(size) +
                                        " is not between 1 and 2147483647");
        }
        if (product > limit / size) {
            throw std::invalid_argument("the array is too large for this machine");
        }
        product *= size;
    }
    return product;
}

}  // namespace vkrt

// Rows of floats that may lie apart in memory: those of some heads beside one another.
#pragma once

#include <cstddef>

namespace vkrt {

// The numbers of a row are neighbours; what is between rows is measured in floats.
struct Rows {
    const float* data;
    std::ptrdiff_t batch, head, row;

    // Return the first row of an object: one head of one item of the batch.
    Rows of(std::ptrdiff_t object, std::ptrdiff_t heads) const {
        return {data + (object / heads) * batch + (object % heads) * head, 0, 0, row};
    }

    const float* at(std::ptrdiff_t index) const { return data + index * row; }
};

}  // namespace vkrt

// Attention with one head that never holds the logits of more than a block of keys.
#pragma once

#include <cstddef>

#include "tile.h"

namespace vkrt {

struct AttentionShape {
    std::ptrdiff_t objects;
    std::ptrdiff_t queries, keys;  // of each object
    std::ptrdiff_t depth;          // of a query and of a key
    std::ptrdiff_t width;          // of a value
};

// Arrays without gaps, one object after another.
struct AttentionInput {
    const float* query;  // (queries, depth)
    const float* key;    // (keys, depth)
    const float* value;  // (keys, width)
    const float* bias;   // (keys), may be null
};

// Write softmax(query key^T / sqrt(depth) + bias) value, (queries, width) for each object.
// A key with a bias of -1e8 or less takes no part, and neither it nor its value is read; without
// any other key the result is 0. The number of threads does not change a bit of the result.
void attend(const AttentionInput& input, const AttentionShape& shape, const Tile& tile, int threads,
            float* out);

}  // namespace vkrt

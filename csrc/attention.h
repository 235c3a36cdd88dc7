// Attention that never holds the logits of more than a block of keys.
#pragma once

#include <cstddef>

#include "rows.h"
#include "tile.h"

namespace vkrt {

struct AttentionShape {
    std::ptrdiff_t batch, heads;   // each head of each item attends by itself: an object
    std::ptrdiff_t queries, keys;  // of each object
    std::ptrdiff_t depth;          // of a query and of a key
    std::ptrdiff_t width;          // of a value

    std::ptrdiff_t objects() const { return batch * heads; }
};

struct AttentionInput {
    Rows query;         // of depth
    Rows key;           // of depth
    Rows value;         // of width
    const float* bias;  // (batch, keys) without gaps, may be null
};

// Write softmax(query key^T / sqrt(depth) + bias) value, (batch, queries, heads, width).
// A key with a bias of -1e8 or less takes no part, and neither it nor its value is read; without
// any other key the result is 0. The number of threads does not change a bit of the result.
void attend(const AttentionInput& input, const AttentionShape& shape, const Tile& tile, int threads,
            float* out);

}  // namespace vkrt

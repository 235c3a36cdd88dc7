// The inner step of attention: some queries against a block of keys, in one version a vector width.
#pragma once

#include <cstddef>
#include <vector>

// Versions of the step for wider vectors than every machine of this kind has.
#if defined(__x86_64__) && defined(__GNUC__)
#define VKRT_WIDE_TILES 1
#else
#define VKRT_WIDE_TILES 0
#endif

namespace vkrt {

constexpr std::ptrdiff_t kBlockKeys = 128;
constexpr float kLog2E = 1.44269504F;  // powers of 2 are quicker than those of e

// Up to kBlockKeys keys with their values; row by row, without gaps.
struct KeyBlock {
    const float* keys;    // (count, depth)
    const float* values;  // (count, width)
    const float* bias;    // (count), times kLog2E
    std::ptrdiff_t count;
};

// As many queries as the vectors of a Tile hold, and what is known of their softmax so far. Every
// buffer has the queries last, so that no sum goes across a vector.
struct Panel {
    std::ptrdiff_t depth;  // of a query and of a key
    std::ptrdiff_t width;  // of a value
    float* queries;        // (depth, queries), times kLog2E / sqrt(depth)
    float* weights;        // (kBlockKeys, queries), room to work in
    float* largest;        // (queries), the largest logit
    float* total;          // (queries), the sum of the weights 2^(logit - largest)
    float* sums;           // (width, queries), the sum of the values times their weights
};

struct Tile {
    const char* name;
    std::ptrdiff_t queries;  // of one panel
    // Add a block to what the panel knows.
    void (*add_block)(const KeyBlock& block, const Panel& panel);
    // out[i] = 2^x[i] as add_block has it: 1 for 0, 2^-125 below -125. For x of at most 0.
    void (*exp2)(const float* x, std::ptrdiff_t count, float* out);
};

extern const Tile kTile128;
#if VKRT_WIDE_TILES
extern const Tile kTile256;
extern const Tile kTile512;
#endif

// Return those that run on this machine, the best one first.
const std::vector<const Tile*>& usable_tiles();

}  // namespace vkrt

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
#if VKRT_WIDE_TILES && (defined(__clang__) || __GNUC__ >= 11)
#define VKRT_BF16_TILE 1
#else
#define VKRT_BF16_TILE 0
#endif

namespace vkrt {

constexpr std::ptrdiff_t kBlockKeys = 128;
constexpr float kLog2E = 1.44269504F;  // powers of 2 are quicker than those of e

// The numbers of a product are held in units of four bytes, which hold one float or, for a Tile that
// says so, two bf16; then a float is but what the bits of both are kept in. units(n) hold n numbers.

// Up to kBlockKeys keys with their values; row by row, without gaps.
struct KeyBlock {
    const float* keys;    // (count, units(depth))
    const float* values;  // (units(count), width)
    const float* bias;    // (count), times kLog2E
    std::ptrdiff_t count;
};

// As many queries as the vectors of a Tile hold, and what is known of their softmax so far. Every
// buffer has the queries last, so that no sum goes across a vector.
struct Panel {
    std::ptrdiff_t depth;  // of a query and of a key
    std::ptrdiff_t width;  // of a value
    float* queries;        // (units(depth), queries), times kLog2E / sqrt(depth)
    float* weights;        // (kBlockKeys, queries), room to work in
    float* largest;        // (queries), the largest logit
    float* total;          // (queries), the sum of the weights 2^(logit - largest)
    float* sums;           // (width, queries), the sum of the values times their weights
};

struct Tile {
    const char* name;
    std::ptrdiff_t queries;  // of one panel
    std::ptrdiff_t numbers;  // of a unit
    // Add a block to what the panel knows.
    void (*add_block)(const KeyBlock& block, const Panel& panel);
    // out[i] = 2^x[i] as add_block has it: 1 for 0, 2^-125 below -125. For x of at most 0.
    void (*exp2)(const float* x, std::ptrdiff_t count, float* out);

    std::ptrdiff_t units(std::ptrdiff_t count) const { return (count + numbers - 1) / numbers; }
};

extern const Tile kTile128;
#if VKRT_WIDE_TILES
extern const Tile kTile256;
extern const Tile kTile512;
#endif
#if VKRT_BF16_TILE
extern const Tile kTileBf16;
#endif

// What the factors of a product may be rounded to.
enum class Precision { kFp32, kBf16 };

// Return those that run on this machine and round to no less, the best one first.
const std::vector<const Tile*>& usable_tiles(Precision precision);

}  // namespace vkrt

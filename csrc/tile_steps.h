// What every version of the inner step shares. Whoever includes this defines VKRT_TARGET first, the
// attribute that allows its instructions, and then gives a class of vectors, Lanes:
//   Float, Word        vectors of float and of std::uint32_t; a plain number is one, too
//   kVectors           how many make the queries of a panel
//   kRows              keys, or columns of values, that are worked on at a time
//   kNumbers           numbers in a unit
//   all(x)             x in every lane
//   multiply_add(a, b, c)   a * b + c
//   dot(a, b, c)       the same of units: the products of their numbers, and c
//   join(a, b)         units of a number of a and one of b; only where kNumbers is 2
//   larger(a, b)       the larger one, b where either is NaN
//   shift(w, n)        each lane shifted left by n bits
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "clones.h"
#include "tile.h"

#define VKRT_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define VKRT_STEP VKRT_TARGET inline __attribute__((always_inline))
#define VKRT_UNROLL(count) VKRT_PRAGMA(clang loop unroll_count(count))
#elif defined(__GNUC__)
#define VKRT_STEP VKRT_TARGET inline __attribute__((always_inline))
#define VKRT_UNROLL(count) VKRT_PRAGMA(GCC unroll count)
#else
#define VKRT_STEP inline
#define VKRT_UNROLL(count)
#endif

namespace vkrt {

// A function compiled for one set of instructions must not stand in for that of another.
namespace {

template <class Lanes>
constexpr std::ptrdiff_t kQueries =
    Lanes::kVectors * static_cast<std::ptrdiff_t>(sizeof(typename Lanes::Float) / sizeof(float));

template <class Lanes>
using Row = typename Lanes::Float[Lanes::kVectors];

template <class Lanes>
constexpr std::ptrdiff_t units(std::ptrdiff_t count) {
    return (count + Lanes::kNumbers - 1) / Lanes::kNumbers;
}

template <class Lanes>
VKRT_STEP typename Lanes::Float load(const float* from) {
    typename Lanes::Float vector;
    std::memcpy(&vector, from, sizeof(vector));
    return vector;
}

template <class Lanes>
VKRT_STEP void store(typename Lanes::Float vector, float* to) {
    std::memcpy(to, &vector, sizeof(vector));
}

// Return 2^x for x of at most 0, as Tile::exp2; 2^-125 is as good as 0 here, and stays clear of
// numbers that are slow to compute with. NaN stays NaN. The relative error is below 2e-7.
template <class Lanes>
VKRT_STEP typename Lanes::Float exp2_of(typename Lanes::Float x) {
    using Float = typename Lanes::Float;
    using Word = typename Lanes::Word;
    // Adding it rounds to an integer, which then stands in the lowest bits.
    const Float rounder = Lanes::all(12582912.0F);
    x = Lanes::larger(Lanes::all(-125.0F), x);
    const Float rounded = x + rounder;
    const Float rest = x - (rounded - rounder);
    // The polynomial of degree 5 with the least relative error on [-1/2, 1/2] that is 1 at 0.
    Float power = Lanes::all(0.0013264731F);
    power = Lanes::multiply_add(power, rest, Lanes::all(0.009671513F));
    power = Lanes::multiply_add(power, rest, Lanes::all(0.055507336F));
    power = Lanes::multiply_add(power, rest, Lanes::all(0.24022242F));
    power = Lanes::multiply_add(power, rest, Lanes::all(0.693147F));
    power = Lanes::multiply_add(power, rest, Lanes::all(1.0F));
    Word bits, exponent;
    std::memcpy(&bits, &power, sizeof(bits));
    std::memcpy(&exponent, &rounded, sizeof(exponent));
    bits += Lanes::shift(exponent, 23);
    std::memcpy(&power, &bits, sizeof(power));
    return power;
}

template <class Lanes, int kRows>
VKRT_STEP void clear(Row<Lanes> (&sums)[kRows]) {
    VKRT_UNROLL(16)
    for (int r = 0; r < kRows; ++r) {
        VKRT_UNROLL(8)
        for (int v = 0; v < Lanes::kVectors; ++v) sums[r][v] = Lanes::all(0.0F);
    }
}

// sums[r] += sum over i of left[r * row + i * step] * right[i], all of them units
template <class Lanes, int kRows>
VKRT_STEP void multiply(const float* VKRT_RESTRICT left, std::ptrdiff_t row, std::ptrdiff_t step,
                        const float* VKRT_RESTRICT right, std::ptrdiff_t count,
                        Row<Lanes> (&sums)[kRows]) {
    constexpr std::ptrdiff_t kWidth = kQueries<Lanes> / Lanes::kVectors;
    VKRT_UNROLL(4)
    for (std::ptrdiff_t i = 0; i < count; ++i) {
        Row<Lanes> vectors;
        VKRT_UNROLL(8)
        for (int v = 0; v < Lanes::kVectors; ++v) vectors[v] = load<Lanes>(right + v * kWidth);
        VKRT_UNROLL(16)
        for (int r = 0; r < kRows; ++r) {
            const typename Lanes::Float factor = Lanes::all(left[r * row]);
            VKRT_UNROLL(8)
            for (int v = 0; v < Lanes::kVectors; ++v) {
                sums[r][v] = Lanes::dot(factor, vectors[v], sums[r][v]);
            }
        }
        left += step;
        right += kQueries<Lanes>;
    }
}

// Write the logits of keys [first, first + kRows), and raise `largest` to them.
template <class Lanes, int kRows>
VKRT_STEP void compare(const KeyBlock& block, std::ptrdiff_t first, const Panel& panel,
                       Row<Lanes>& largest) {
    constexpr std::ptrdiff_t kWidth = kQueries<Lanes> / Lanes::kVectors;
    Row<Lanes> sums[kRows];
    clear<Lanes, kRows>(sums);
    const std::ptrdiff_t depth = units<Lanes>(panel.depth);
    multiply<Lanes, kRows>(block.keys + first * depth, depth, 1, panel.queries, depth, sums);
    float* logits = panel.weights + first * kQueries<Lanes>;
    VKRT_UNROLL(16)
    for (int r = 0; r < kRows; ++r) {
        const typename Lanes::Float bias = Lanes::all(block.bias[first + r]);
        VKRT_UNROLL(8)
        for (int v = 0; v < Lanes::kVectors; ++v) {
            const typename Lanes::Float logit = sums[r][v] + bias;
            largest[v] = Lanes::larger(logit, largest[v]);
            store<Lanes>(logit, logits + r * kQueries<Lanes> + v * kWidth);
        }
    }
}

// Return the weights of the key whose logits these are, for one vector of queries.
template <class Lanes>
VKRT_STEP typename Lanes::Float weight_of(const float* logits, typename Lanes::Float largest) {
    return exp2_of<Lanes>(load<Lanes>(logits) - largest);
}

// Turn the logits into weights relative to `largest`, in units, and add them to the total; `scale`
// becomes what earlier sums are to be multiplied with.
template <class Lanes>
VKRT_STEP void weigh(std::ptrdiff_t count, const Panel& panel, const Row<Lanes>& largest,
                     Row<Lanes>& scale) {
    using Float = typename Lanes::Float;
    constexpr std::ptrdiff_t kWidth = kQueries<Lanes> / Lanes::kVectors;
    Row<Lanes> total;
    VKRT_UNROLL(8)
    for (int v = 0; v < Lanes::kVectors; ++v) {
        scale[v] = exp2_of<Lanes>(load<Lanes>(panel.largest + v * kWidth) - largest[v]);
        total[v] = Lanes::all(0.0F);
    }
    const float* logits = panel.weights;
    float* weights = panel.weights;  // units take no more room than logits, so they may lie there
    for (std::ptrdiff_t i = 0; i < count; i += Lanes::kNumbers) {
        VKRT_UNROLL(8)
        for (int v = 0; v < Lanes::kVectors; ++v) {
            Float weight = weight_of<Lanes>(logits + v * kWidth, largest[v]);
            total[v] = total[v] + weight;
            if constexpr (Lanes::kNumbers == 2) {
                Float next = Lanes::all(0.0F);
                if (i + 1 < count) {
                    next = weight_of<Lanes>(logits + kQueries<Lanes> + v * kWidth, largest[v]);
                    total[v] = total[v] + next;
                }
                weight = Lanes::join(weight, next);
            }
            store<Lanes>(weight, weights + v * kWidth);
        }
        logits += Lanes::kNumbers * kQueries<Lanes>;
        weights += kQueries<Lanes>;
    }
    VKRT_UNROLL(8)
    for (int v = 0; v < Lanes::kVectors; ++v) {
        float* kept = panel.total + v * kWidth;
        store<Lanes>(Lanes::multiply_add(load<Lanes>(kept), scale[v], total[v]), kept);
        store<Lanes>(largest[v], panel.largest + v * kWidth);
    }
}

// Add the weighted values to the sums, columns [first, first + kRows).
template <class Lanes, int kRows>
VKRT_STEP void blend(const KeyBlock& block, std::ptrdiff_t first, const Panel& panel,
                     const Row<Lanes>& scale) {
    constexpr std::ptrdiff_t kWidth = kQueries<Lanes> / Lanes::kVectors;
    Row<Lanes> sums[kRows];
    clear<Lanes, kRows>(sums);
    multiply<Lanes, kRows>(block.values + first, 1, panel.width, panel.weights,
                           units<Lanes>(block.count), sums);
    float* kept = panel.sums + first * kQueries<Lanes>;
    VKRT_UNROLL(16)
    for (int r = 0; r < kRows; ++r) {
        VKRT_UNROLL(8)
        for (int v = 0; v < Lanes::kVectors; ++v) {
            float* at = kept + r * kQueries<Lanes> + v * kWidth;
            store<Lanes>(Lanes::multiply_add(load<Lanes>(at), scale[v], sums[r][v]), at);
        }
    }
}

// Sums of a block begin at 0 and are then added to those before it: so many keys one by one would
// cost tenfold in rounding.
template <class Lanes>
VKRT_TARGET void add_block(const KeyBlock& block, const Panel& panel) {
    constexpr std::ptrdiff_t kWidth = kQueries<Lanes> / Lanes::kVectors;
    constexpr int kRows = Lanes::kRows;
    Row<Lanes> largest, scale;
    VKRT_UNROLL(8)
    for (int v = 0; v < Lanes::kVectors; ++v) largest[v] = load<Lanes>(panel.largest + v * kWidth);
    std::ptrdiff_t key = 0;
    for (; key + kRows <= block.count; key += kRows) {
        compare<Lanes, kRows>(block, key, panel, largest);
    }
    for (; key < block.count; ++key) compare<Lanes, 1>(block, key, panel, largest);
    weigh<Lanes>(block.count, panel, largest, scale);
    std::ptrdiff_t column = 0;
    for (; column + kRows <= panel.width; column += kRows) {
        blend<Lanes, kRows>(block, column, panel, scale);
    }
    for (; column < panel.width; ++column) blend<Lanes, 1>(block, column, panel, scale);
}

template <class Lanes>
VKRT_TARGET void exp2_each(const float* x, std::ptrdiff_t count, float* out) {
    for (std::ptrdiff_t i = 0; i < count; ++i) {
        float lanes[kQueries<Lanes>] = {x[i]};
        store<Lanes>(exp2_of<Lanes>(load<Lanes>(lanes)), lanes);
        out[i] = lanes[0];
    }
}

template <class Lanes>
constexpr Tile make_tile(const char* name) {
    return {name, kQueries<Lanes>, Lanes::kNumbers, &add_block<Lanes>, &exp2_each<Lanes>};
}

}  // namespace

}  // namespace vkrt

// What vectors of 512 bits do alike for every kind of unit; see tile_steps.h, which comes first.
#pragma once

#include <immintrin.h>

#include "tile_steps.h"

namespace vkrt {

namespace {

struct Vectors512 {
    typedef float Float __attribute__((vector_size(64)));
    typedef std::uint32_t Word __attribute__((vector_size(64)));
    static constexpr int kVectors = 2, kRows = 8;
    VKRT_STEP static Float all(float x) { return _mm512_set1_ps(x); }
    VKRT_STEP static Float multiply_add(Float a, Float b, Float c) {
        return _mm512_fmadd_ps(a, b, c);
    }
    VKRT_STEP static Float larger(Float a, Float b) { return a > b ? a : b; }
    VKRT_STEP static Word shift(Word w, int n) { return w << n; }
};

}  // namespace

}  // namespace vkrt

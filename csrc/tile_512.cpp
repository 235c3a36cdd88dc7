#include "tile.h"

#if VKRT_WIDE_TILES

#include <immintrin.h>

#define VKRT_TARGET __attribute__((target("avx512f")))
#include "tile_steps.h"

namespace vkrt {

namespace {

struct Lanes512 {
    typedef float Float __attribute__((vector_size(64)));
    typedef std::uint32_t Word __attribute__((vector_size(64)));
    static constexpr int kVectors = 2, kRows = 8, kNumbers = 1;
    VKRT_STEP static Float all(float x) { return _mm512_set1_ps(x); }
    VKRT_STEP static Float multiply_add(Float a, Float b, Float c) {
        return _mm512_fmadd_ps(a, b, c);
    }
    VKRT_STEP static Float dot(Float a, Float b, Float c) { return multiply_add(a, b, c); }
    VKRT_STEP static Float larger(Float a, Float b) { return a > b ? a : b; }
    VKRT_STEP static Word shift(Word w, int n) { return w << n; }
};

}  // namespace

const Tile kTile512 = make_tile<Lanes512>("avx512");

}  // namespace vkrt

#endif

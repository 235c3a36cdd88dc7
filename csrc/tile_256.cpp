#include "tile.h"

#if VKRT_WIDE_TILES

#include <immintrin.h>

#define VKRT_TARGET __attribute__((target("avx2,fma")))
#include "tile_steps.h"

namespace vkrt {

namespace {

struct Lanes256 {
    typedef float Float __attribute__((vector_size(32)));
    typedef std::uint32_t Word __attribute__((vector_size(32)));
#if defined(__clang__)
    static constexpr int kVectors = 2, kRows = 4, kNumbers = 1;  // of 12 sums it would keep one in memory
#else
    static constexpr int kVectors = 3, kRows = 4, kNumbers = 1;  // 12 sums, 3 vectors, a factor: 16 registers
#endif
    VKRT_STEP static Float all(float x) { return _mm256_set1_ps(x); }
    VKRT_STEP static Float multiply_add(Float a, Float b, Float c) {
        return _mm256_fmadd_ps(a, b, c);
    }
    VKRT_STEP static Float dot(Float a, Float b, Float c) { return multiply_add(a, b, c); }
    VKRT_STEP static Float larger(Float a, Float b) { return _mm256_max_ps(a, b); }
    VKRT_STEP static Word shift(Word w, int n) { return w << n; }
};

}  // namespace

const Tile kTile256 = make_tile<Lanes256>("avx2");

}  // namespace vkrt

#endif

#include "tile.h"

#if VKRT_WIDE_TILES

#define VKRT_TARGET __attribute__((target("avx512f")))
#include "lanes_512.h"

namespace vkrt {

namespace {

struct Lanes512 : Vectors512 {
    static constexpr int kNumbers = 1;
    VKRT_STEP static Float dot(Float a, Float b, Float c) { return multiply_add(a, b, c); }
};

}  // namespace

const Tile kTile512 = make_tile<Lanes512>("avx512");

}  // namespace vkrt

#endif

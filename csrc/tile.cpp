#include "tile.h"

namespace vkrt {

namespace {

std::vector<const Tile*> find_usable(Precision precision) {
    std::vector<const Tile*> found;
#if VKRT_BF16_TILE
    if (precision == Precision::kBf16 && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512bf16")) {
        found.push_back(&kTileBf16);
    }
#else
    static_cast<void>(precision);
#endif
#if VKRT_WIDE_TILES
    if (__builtin_cpu_supports("avx512f")) found.push_back(&kTile512);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&kTile256);
#endif
    found.push_back(&kTile128);
    return found;
}

}  // namespace

const std::vector<const Tile*>& usable_tiles(Precision precision) {
    static const std::vector<const Tile*> exact = find_usable(Precision::kFp32);
    static const std::vector<const Tile*> rounded = find_usable(Precision::kBf16);
    return precision == Precision::kBf16 ? rounded : exact;
}

}  // namespace vkrt

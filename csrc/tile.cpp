#include "tile.h"

namespace vkrt {

namespace {

std::vector<const Tile*> find_usable() {
    std::vector<const Tile*> found;
#if VKRT_WIDE_TILES
    if (__builtin_cpu_supports("avx512f")) found.push_back(&kTile512);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&kTile256);
#endif
    found.push_back(&kTile128);
    return found;
}

}  // namespace

const std::vector<const Tile*>& usable_tiles() {
    static const std::vector<const Tile*> usable = find_usable();
    return usable;
}

}  // namespace vkrt

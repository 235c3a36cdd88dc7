#include "axis.h"

#include <algorithm>
#include <cstddef>
#include <limits>

namespace vkrt {

Axis make_axis(int source, int target) {
    // float32 on purpose, so that a pixel at the threshold falls on the side where PyTorch puts it.
    const float scale = static_cast<float>(source) / static_cast<float>(target);
    const std::size_t whole = (static_cast<std::size_t>(target) + kBlock - 1) / kBlock * kBlock;
    constexpr float nan = std::numeric_limits<float>::quiet_NaN();
    Axis axis{target,
              std::vector<std::int32_t>(whole, source - 1),
              std::vector<std::int32_t>(whole, source - 1),
              std::vector<float>(whole, nan),
              std::vector<float>(whole, nan)};
    for (int i = 0; i < target; ++i) {
        const float at = std::max(scale * (static_cast<float>(i) + 0.5F) - 0.5F, 0.0F);
        const int low = std::min(static_cast<int>(at), source - 1);
        const float weight = std::clamp(at - static_cast<float>(low), 0.0F, 1.0F);
        const auto place = static_cast<std::size_t>(i);
        axis.low[place] = low;
        axis.high[place] = std::min(low + 1, source - 1);
        axis.low_weight[place] = 1.0F - weight;
        axis.high_weight[place] = weight;
    }
    return axis;
}

}  // namespace vkrt

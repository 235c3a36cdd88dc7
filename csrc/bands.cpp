#include "bands.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "parallel.h"

namespace vkrt {

namespace {

constexpr int kFewestRows = 32;  // of a band: below, preparing rows twice costs more than it gains

}  // namespace

std::vector<Band> make_bands(int masks, int height, int threads) {
    const int wanted = std::max(1, 4 * thread_count(threads) / masks);
    const int bands = std::clamp(height / kFewestRows, 1, wanted);
    std::vector<Band> all;
    for (int mask = 0; mask < masks; ++mask) {
        for (int band = 0; band < bands; ++band) {
            const auto edge = [&](int i) {
                return static_cast<int>(static_cast<std::int64_t>(height) * i / bands);
            };
            all.push_back({mask, edge(band), edge(band + 1)});
        }
    }
    return all;
}

std::vector<Tally> add_up(const std::vector<Band>& bands, const std::vector<Tally>& parts,
                          int masks) {
    std::vector<Tally> totals(static_cast<std::size_t>(masks));
    for (std::size_t i = 0; i < bands.size(); ++i) {
        totals[static_cast<std::size_t>(bands[i].mask)].add(parts[i]);
    }
    return totals;
}

}  // namespace vkrt

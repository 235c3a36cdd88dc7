// The rows of several masks, cut into pieces of work.
#pragma once

#include <vector>

#include "tally.h"

namespace vkrt {

// The rows [begin, end) of one mask.
struct Band {
    int mask;
    int begin;
    int end;
};

// Return the bands of all masks, in order, enough of them to keep the threads busy.
std::vector<Band> make_bands(int masks, int height, int threads);

// Return each mask's tally, made of those of its bands.
std::vector<Tally> add_up(const std::vector<Band>& bands, const std::vector<Tally>& parts,
                          int masks);

}  // namespace vkrt

// Run lengths as COCO's compressed string.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace vkrt {

// Return the text: each number, from the fourth on less the one two before it, in groups of five
// bits, lowest first, as characters from '0' on; the sixth bit of one says that more follow.
std::string runs_to_text(const std::uint32_t* runs, std::size_t count);

// Return the runs of a text.
// Throws std::invalid_argument where it is no such text.
std::vector<std::uint32_t> text_to_runs(const char* text, std::size_t length);

}  // namespace vkrt

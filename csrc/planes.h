// Stacks of pictures in memory, and sizes of pictures.
#pragma once

#include <cstdint>

namespace vkrt {

// `count` planes of height x width items, without gaps.
template <typename T>
struct Planes {
    T* values;
    int count;
    int height;
    int width;
};

using Logits = Planes<const float>;

struct Size {
    int height;
    int width;
};

}  // namespace vkrt

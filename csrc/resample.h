// The weights of a separable resize along one axis: what Pillow and PyTorch's antialias have.
#pragma once

#include <cstddef>
#include <vector>

namespace vkrt {

// The source pixels that one target pixel is the weighted sum of.
struct Span {
    int first;
    int count;
    std::size_t weights;  // where its weights begin
};

// For each target pixel its span; the weights of a span sum to 1.
template <typename Weight>
struct Resampling {
    std::vector<Span> spans;
    std::vector<Weight> weights;
};

// A filter by its value at a distance, which is 0 from `reach` on.
struct Kernel {
    double (*value)(double);
    double reach;
};

// 1 - |x|.
extern const Kernel kTriangle;

// Keys' cubic convolution with a = -0.5.
extern const Kernel kCubic;

// Where the target is smaller than the source, the kernel is as wide in target pixels.
Resampling<double> make_resampling(int source, int target, const Kernel& kernel);

}  // namespace vkrt

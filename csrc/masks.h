// Low-resolution mask logits to masks of a photo's size.
#pragma once

#include <cstdint>
#include <vector>

namespace vkrt {

// `count` planes of height x width logits, without gaps.
struct Logits {
    const float* values;
    int count;
    int height;
    int width;
};

struct Size {
    int height;
    int width;
};

// A pixel belongs to the mask where its logit is above `threshold`; `offset` is how far the
// threshold moves either way to see whether the mask is stable.
struct Cut {
    float threshold;
    float offset;
};

// Pixels above the threshold, above threshold + offset and above threshold - offset.
struct Counts {
    std::int64_t area = 0;
    std::int64_t inner = 0;
    std::int64_t outer = 0;
};

// Write `count` planes of floats at the new size: what PyTorch computes for mode="bilinear",
// align_corners=False.
void upsample_logits(const Logits& logits, const Size& size, int threads, float* out);

// Write `count` planes of 0 and 1 at the new size and return each mask's counts. The same numbers
// as upsample_logits and a comparison, but only two rows of floats exist at any time.
std::vector<Counts> binarize_logits(const Logits& logits, const Size& size, const Cut& cut,
                                    int threads, std::uint8_t* out);

}  // namespace vkrt

// Photo to network input: antialiased resize and normalization in one pass.
#pragma once

#include <array>
#include <cstdint>

namespace vkrt {

// A photo's bytes, rows of RGB pixels without gaps.
struct Photo {
    const std::uint8_t* pixels;
    int height;
    int width;
};

// value * scale + bias for each of the three channels.
struct Normalization {
    std::array<float, 3> scale;
    std::array<float, 3> bias;
};

// Write the photo as three planes of size x size floats.
// The filter is a triangle as wide as two source pixels, or two target pixels where the photo
// shrinks: what PyTorch computes for mode="bilinear", antialias=True, align_corners=False.
void resize_photo(const Photo& photo, int size, const Normalization& normalization, int threads,
                  float* out);

enum class PassOrder { kAcrossFirst, kDownFirst };

// As resize_photo, with a cubic filter and each pass rounded to bytes: to the bit what Pillow
// computes for BICUBIC on 8-bit pictures, if the order of the passes is its own.
void resize_photo_bicubic(const Photo& photo, int size, const Normalization& normalization,
                          PassOrder order, int threads, float* out);

}  // namespace vkrt

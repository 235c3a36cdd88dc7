#include "resize.h"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "clones.h"
#include "parallel.h"
#include "resample.h"

namespace vkrt {

namespace {

constexpr int kRowsPerTask = 16;

Resampling<float> make_filter(int source, int target) {
    const Resampling<double> exact = make_resampling(source, target, kTriangle);
    return {exact.spans, {exact.weights.begin(), exact.weights.end()}};
}

// out[i] = sum over k of weights[k] * rows[k * stride + i]
VKRT_CLONES void blend_rows(const std::uint8_t* VKRT_RESTRICT rows, std::ptrdiff_t stride,
                            const float* VKRT_RESTRICT weights, int count, int length,
                            float* VKRT_RESTRICT out) {
    for (int i = 0; i < length; ++i) out[i] = weights[0] * static_cast<float>(rows[i]);
    int k = 1;
    for (; k + 1 < count; k += 2) {
        const std::uint8_t* VKRT_RESTRICT one = rows + k * stride;
        const std::uint8_t* VKRT_RESTRICT two = one + stride;
        const float a = weights[k], b = weights[k + 1];
        for (int i = 0; i < length; ++i) {
            out[i] += a * static_cast<float>(one[i]) + b * static_cast<float>(two[i]);
        }
    }
    if (k < count) {
        const std::uint8_t* VKRT_RESTRICT one = rows + k * stride;
        for (int i = 0; i < length; ++i) out[i] += weights[k] * static_cast<float>(one[i]);
    }
}

// sums[4 * x + c] = the filtered row at target pixel x, channel c; the fourth lane is waste that
// lets one pixel be one vector. `row` needs one readable float after its end.
VKRT_CLONES void blend_columns(const float* VKRT_RESTRICT row, const Span* VKRT_RESTRICT spans,
                               const float* VKRT_RESTRICT weights, int size,
                               float* VKRT_RESTRICT sums) {
    for (int x = 0; x < size; ++x) {
        const float* pixel = row + 3 * static_cast<std::ptrdiff_t>(spans[x].first);
        const float* weight = weights + spans[x].weights;
        float s0 = 0.0F, s1 = 0.0F, s2 = 0.0F, s3 = 0.0F;
        for (int k = 0; k < spans[x].count; ++k, pixel += 3) {
            s0 += weight[k] * pixel[0];
            s1 += weight[k] * pixel[1];
            s2 += weight[k] * pixel[2];
            s3 += weight[k] * pixel[3];
        }
        sums[4 * x] = s0;
        sums[4 * x + 1] = s1;
        sums[4 * x + 2] = s2;
        sums[4 * x + 3] = s3;
    }
}

VKRT_CLONES void write_plane(const float* VKRT_RESTRICT sums, float scale, float bias, int size,
                             float* VKRT_RESTRICT out) {
    for (int x = 0; x < size; ++x) out[x] = sums[4 * x] * scale + bias;
}

}  // namespace

void resize_photo(const Photo& photo, int size, const Normalization& normalization, int threads,
                  float* out) {
    const Resampling<float> down = make_filter(photo.height, size);
    const Resampling<float> across = make_filter(photo.width, size);
    const std::ptrdiff_t stride = 3 * static_cast<std::ptrdiff_t>(photo.width);
    const std::ptrdiff_t plane = static_cast<std::ptrdiff_t>(size) * size;
    parallel_for((size + kRowsPerTask - 1) / kRowsPerTask, threads, [&](std::int64_t task) {
        std::vector<float> row(static_cast<std::size_t>(stride) + 1, 0.0F);
        std::vector<float> sums(4 * static_cast<std::size_t>(size));
        const int begin = static_cast<int>(task) * kRowsPerTask;
        const int end = std::min(begin + kRowsPerTask, size);
        for (int y = begin; y < end; ++y) {
            const Span& span = down.spans[static_cast<std::size_t>(y)];
            blend_rows(photo.pixels + span.first * stride, stride,
                       down.weights.data() + span.weights, span.count, static_cast<int>(stride),
                       row.data());
            blend_columns(row.data(), across.spans.data(), across.weights.data(), size,
                          sums.data());
            for (int c = 0; c < 3; ++c) {
                const auto channel = static_cast<std::size_t>(c);
                write_plane(sums.data() + c, normalization.scale[channel],
                            normalization.bias[channel], size,
                            out + c * plane + static_cast<std::ptrdiff_t>(y) * size);
            }
        }
    });
}

}  // namespace vkrt

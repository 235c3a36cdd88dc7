#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "clones.h"
#include "parallel.h"
#include "resample.h"
#include "resize.h"

namespace vkrt {

namespace {

constexpr int kRowsPerTask = 16;
// Weights are whole numbers of this many bits after the point, so that sums of bytes times weights
// are exact and fit 32 bits.
constexpr int kBits = 22;
constexpr std::int32_t kHalf = std::int32_t{1} << (kBits - 1);

Resampling<std::int32_t> make_filter(int source, int target) {
    const Resampling<double> exact = make_resampling(source, target, kCubic);
    Resampling<std::int32_t> rounded{exact.spans, {}};
    rounded.weights.reserve(exact.weights.size());
    for (const double weight : exact.weights) {
        const double scaled = weight * (1 << kBits);
        rounded.weights.push_back(static_cast<std::int32_t>(scaled + (scaled < 0 ? -0.5 : 0.5)));
    }
    return rounded;
}

inline std::uint8_t to_byte(std::int32_t sum) {
    return static_cast<std::uint8_t>(std::clamp(sum >> kBits, 0, 255));
}

VKRT_CLONES void widen(const std::uint8_t* VKRT_RESTRICT row, int length,
                       std::int32_t* VKRT_RESTRICT out) {
    for (int i = 0; i < length; ++i) out[i] = row[i];
}

// out[3 * x + c] = the filtered row at target pixel x, channel c. Four channels a pixel are summed,
// the last of no use, so that one pixel is one vector: `row` needs a readable number after its end.
VKRT_CLONES void blend_columns(const std::int32_t* VKRT_RESTRICT row,
                               const Span* VKRT_RESTRICT spans,
                               const std::int32_t* VKRT_RESTRICT weights, int size,
                               std::uint8_t* VKRT_RESTRICT out) {
    for (int x = 0; x < size; ++x) {
        const std::int32_t* pixel = row + 3 * static_cast<std::ptrdiff_t>(spans[x].first);
        const std::int32_t* weight = weights + spans[x].weights;
        std::int32_t s0 = kHalf, s1 = kHalf, s2 = kHalf, s3 = kHalf;
        for (int k = 0; k < spans[x].count; ++k, pixel += 3) {
            s0 += weight[k] * pixel[0];
            s1 += weight[k] * pixel[1];
            s2 += weight[k] * pixel[2];
            s3 += weight[k] * pixel[3];
        }
        out[3 * x] = to_byte(s0);
        out[3 * x + 1] = to_byte(s1);
        out[3 * x + 2] = to_byte(s2);
    }
}

// sums[i] = kHalf + sum over k of weights[k] * rows[k * stride + i]
VKRT_CLONES void blend_rows(const std::uint8_t* VKRT_RESTRICT rows, std::ptrdiff_t stride,
                            const std::int32_t* VKRT_RESTRICT weights, int count, int length,
                            std::int32_t* VKRT_RESTRICT sums) {
    for (int i = 0; i < length; ++i) sums[i] = kHalf;
    for (int k = 0; k < count; ++k) {
        const std::uint8_t* VKRT_RESTRICT row = rows + k * stride;
        const std::int32_t weight = weights[k];
        for (int i = 0; i < length; ++i) sums[i] += weight * row[i];
    }
}

VKRT_CLONES void round_row(const std::int32_t* VKRT_RESTRICT sums, int length,
                           std::uint8_t* VKRT_RESTRICT out) {
    for (int i = 0; i < length; ++i) out[i] = to_byte(sums[i]);
}

VKRT_CLONES void write_plane(const std::uint8_t* VKRT_RESTRICT row, float scale, float bias,
                             int size, float* VKRT_RESTRICT out) {
    for (int x = 0; x < size; ++x) out[x] = static_cast<float>(row[3 * x]) * scale + bias;
}

// The pass across. Where the widths are equal each weight is 1 and it copies, as Pillow does.
class Across {
   public:
    Across(int width, int size) : length_(3 * width), size_(size), filter_(make_filter(width, size)) {}

    // Write 3 * size bytes of one row; `wide` is working memory.
    void operator()(const std::uint8_t* row, std::vector<std::int32_t>& wide,
                    std::uint8_t* out) const {
        wide.resize(static_cast<std::size_t>(length_) + 1);
        widen(row, length_, wide.data());
        blend_columns(wide.data(), filter_.spans.data(), filter_.weights.data(), size_, out);
    }

   private:
    int length_, size_;
    Resampling<std::int32_t> filter_;
};

// The pass down, over rows of `length` bytes.
class Down {
   public:
    Down(int height, int size, int length) : length_(length), filter_(make_filter(height, size)) {}

    // Write row y of the result; `sums` is working memory.
    void operator()(const std::uint8_t* rows, int y, std::vector<std::int32_t>& sums,
                    std::uint8_t* out) const {
        const Span& span = filter_.spans[static_cast<std::size_t>(y)];
        sums.resize(static_cast<std::size_t>(length_));
        blend_rows(rows + static_cast<std::ptrdiff_t>(span.first) * length_, length_,
                   filter_.weights.data() + span.weights, span.count, length_, sums.data());
        round_row(sums.data(), length_, out);
    }

   private:
    int length_;
    Resampling<std::int32_t> filter_;
};

// Call body(y) for every row, on several threads.
template <typename Body>
void for_rows(int count, int threads, const Body& body) {
    parallel_for((count + kRowsPerTask - 1) / kRowsPerTask, threads, [&](std::int64_t task) {
        auto rows = body();
        const int begin = static_cast<int>(task) * kRowsPerTask;
        const int end = std::min(begin + kRowsPerTask, count);
        for (int y = begin; y < end; ++y) rows(y);
    });
}

}  // namespace

void resize_photo_bicubic(const Photo& photo, int size, const Normalization& normalization,
                          PassOrder order, int threads, float* out) {
    const std::ptrdiff_t plane = static_cast<std::ptrdiff_t>(size) * size;
    const int source_length = 3 * photo.width, length = 3 * size;
    const auto write_row = [&](const std::uint8_t* row, int y) {
        for (int c = 0; c < 3; ++c) {
            const auto channel = static_cast<std::size_t>(c);
            write_plane(row + c, normalization.scale[channel], normalization.bias[channel], size,
                        out + c * plane + static_cast<std::ptrdiff_t>(y) * size);
        }
    };
    const Across across(photo.width, size);
    if (order == PassOrder::kDownFirst) {
        const Down down(photo.height, size, source_length);
        for_rows(size, threads, [&] {
            return [&, sums = std::vector<std::int32_t>(), wide = std::vector<std::int32_t>(),
                    row = std::vector<std::uint8_t>(static_cast<std::size_t>(source_length)),
                    narrow = std::vector<std::uint8_t>(static_cast<std::size_t>(length))](
                       int y) mutable {
                down(photo.pixels, y, sums, row.data());
                across(row.data(), wide, narrow.data());
                write_row(narrow.data(), y);
            };
        });
        return;
    }
    std::vector<std::uint8_t> narrow(static_cast<std::size_t>(length) *
                                     static_cast<std::size_t>(photo.height));
    for_rows(photo.height, threads, [&] {
        return [&, wide = std::vector<std::int32_t>()](int y) mutable {
            across(photo.pixels + static_cast<std::ptrdiff_t>(y) * source_length, wide,
                   narrow.data() + static_cast<std::ptrdiff_t>(y) * length);
        };
    });
    const Down down(photo.height, size, length);
    for_rows(size, threads, [&] {
        return [&, sums = std::vector<std::int32_t>(),
                row = std::vector<std::uint8_t>(static_cast<std::size_t>(length))](int y) mutable {
            down(narrow.data(), y, sums, row.data());
            write_row(row.data(), y);
        };
    });
}

}  // namespace vkrt

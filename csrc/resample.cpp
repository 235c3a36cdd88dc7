#include "resample.h"

#include <algorithm>
#include <cmath>

namespace vkrt {

namespace {

double triangle(double distance) { return std::max(1.0 - std::abs(distance), 0.0); }

double cubic(double distance) {
    constexpr double a = -0.5;
    const double x = std::abs(distance);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
    if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
    return 0.0;
}

}  // namespace

const Kernel kTriangle{triangle, 1.0};
const Kernel kCubic{cubic, 2.0};

Resampling<double> make_resampling(int source, int target, const Kernel& kernel) {
    const double scale = static_cast<double>(source) / target;
    const double stretch = std::max(scale, 1.0);
    const double shrink = 1.0 / stretch;  // a product with it rounds as Pillow's does
    const double reach = kernel.reach * stretch;
    Resampling<double> made;
    made.spans.reserve(static_cast<std::size_t>(target));
    for (int i = 0; i < target; ++i) {
        const double center = scale * (i + 0.5);
        const int first = std::max(static_cast<int>(center - reach + 0.5), 0);
        const int end = static_cast<int>(std::min(center + reach + 0.5, 1.0 * source));
        const std::size_t begin = made.weights.size();
        double total = 0.0;
        for (int j = first; j < end; ++j) {
            const double weight = kernel.value((j - center + 0.5) * shrink);
            total += weight;
            made.weights.push_back(weight);
        }
        for (std::size_t k = begin; k < made.weights.size(); ++k) made.weights[k] /= total;
        made.spans.push_back({first, end - first, begin});
    }
    return made;
}

}  // namespace vkrt

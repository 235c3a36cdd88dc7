// The version that runs everywhere: vectors of four where the compiler knows them, else plain
// numbers.
#if defined(__aarch64__) && defined(__GNUC__)
#include <arm_neon.h>
#endif

#define VKRT_TARGET
#include "tile_steps.h"

namespace vkrt {

namespace {

struct Lanes128 {
#if defined(__GNUC__)
    typedef float Float __attribute__((vector_size(16)));
    typedef std::uint32_t Word __attribute__((vector_size(16)));
#else
    using Float = float;
    using Word = std::uint32_t;
#endif
#if defined(__aarch64__)
    static constexpr int kVectors = 3, kRows = 8, kNumbers = 1;  // 24 sums in 32 registers
#else
    static constexpr int kVectors = 2, kRows = 4, kNumbers = 1;  // 8 sums in 16, as products take some, too
#endif
    // Less zero, as adding zero would cost an addition: -0 + 0 is not -0.
    VKRT_STEP static Float all(float x) { return x - Float{}; }
    VKRT_STEP static Float multiply_add(Float a, Float b, Float c) {
#if defined(__aarch64__) && defined(__GNUC__)
        return (Float)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
        return a * b + c;
#endif
    }
    VKRT_STEP static Float dot(Float a, Float b, Float c) { return multiply_add(a, b, c); }
    VKRT_STEP static Float larger(Float a, Float b) { return a > b ? a : b; }
    VKRT_STEP static Word shift(Word w, int n) { return w << n; }
};

}  // namespace

const Tile kTile128 = make_tile<Lanes128>("baseline");

}  // namespace vkrt

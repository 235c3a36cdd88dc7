// A loop over independent pieces of work on several threads.
#pragma once

#include <cstdint>
#include <functional>

namespace vkrt {

// Return how many threads to use: `wanted` up to 256, or for 0 one per core up to 8.
int thread_count(int wanted);

// Call body(i) once for every i in [0, count), on up to thread_count(threads) threads.
// The first exception of a body stops the loop and is thrown again here.
void parallel_for(std::int64_t count, int threads, const std::function<void(std::int64_t)>& body);

}  // namespace vkrt

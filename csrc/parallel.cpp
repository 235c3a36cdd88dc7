#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace vkrt {

namespace {

constexpr int kMostCores = 8;
constexpr int kMostThreads = 256;

// What the threads of one loop share.
struct Loop {
    std::int64_t count;
    const std::function<void(std::int64_t)>& body;
    std::atomic<std::int64_t> next{0};
    std::exception_ptr error{};
    std::mutex guard{};

    void work() {
        try {
            for (std::int64_t i = next++; i < count; i = next++) body(i);
        } catch (...) {
            next = count;
            const std::lock_guard<std::mutex> lock(guard);
            if (!error) error = std::current_exception();
        }
    }
};

}  // namespace

int thread_count(int wanted) {
    if (wanted > 0) return std::min(wanted, kMostThreads);
    const int cores = static_cast<int>(std::thread::hardware_concurrency());
    return std::clamp(cores, 1, kMostCores);
}

void parallel_for(std::int64_t count, int threads, const std::function<void(std::int64_t)>& body) {
    Loop loop{count, body};
    const std::int64_t used = std::min<std::int64_t>(thread_count(threads), count);
    std::vector<std::thread> helpers;
    try {
        for (std::int64_t i = 1; i < used; ++i) helpers.emplace_back([&loop] { loop.work(); });
    } catch (const std::system_error&) {
        // The machine gives no more threads: those that run finish the work.
    }
    loop.work();
    for (std::thread& helper : helpers) helper.join();
    if (loop.error) std::rethrow_exception(loop.error);
}

}  // namespace vkrt

#include "attention.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "key_blocks.h"
#include "paired_blocks.h"
#include "panels.h"
#include "parallel.h"

namespace vkrt {

namespace {

// A block of keys comes from main memory once for so many queries, which are to stay in the
// second-level cache together with it.
constexpr std::ptrdiff_t kMostQueries = 256;
constexpr std::ptrdiff_t kTasksPerThread = 4;  // so that no thread waits long for another

// Some queries of one object.
struct Task {
    std::ptrdiff_t object;
    std::ptrdiff_t first, count;
};

std::ptrdiff_t queries_per_task(const AttentionShape& shape, std::ptrdiff_t lanes, int threads) {
    const std::ptrdiff_t panels = shape.objects() * ((shape.queries + lanes - 1) / lanes);
    const std::ptrdiff_t most = std::max<std::ptrdiff_t>(kMostQueries / lanes, 1);
    return std::clamp<std::ptrdiff_t>(panels / (kTasksPerThread * threads), 1, most) * lanes;
}

std::vector<Task> make_tasks(const AttentionShape& shape, std::ptrdiff_t step) {
    std::vector<Task> tasks;
    for (std::ptrdiff_t object = 0; object < shape.objects(); ++object) {
        for (std::ptrdiff_t first = 0; first < shape.queries; first += step) {
            tasks.push_back({object, first, std::min(step, shape.queries - first)});
        }
    }
    return tasks;
}

std::vector<KeyBlocks> make_blocks(const AttentionInput& input, const AttentionShape& shape) {
    std::vector<KeyBlocks> blocks;
    blocks.reserve(static_cast<std::size_t>(shape.objects()));
    for (std::ptrdiff_t i = 0; i < shape.objects(); ++i) {
        const std::ptrdiff_t item = i / shape.heads;
        const float* bias = input.bias == nullptr ? nullptr : input.bias + item * shape.keys;
        blocks.emplace_back(input.key.of(i, shape.heads), input.value.of(i, shape.heads), bias,
                            shape.keys, shape.depth, shape.width);
    }
    return blocks;
}

// The blocks of all objects, as a Tile takes them.
class Blocks {
   public:
    Blocks(const AttentionInput& input, const AttentionShape& shape, const Tile& tile, int threads)
        : blocks_(make_blocks(input, shape)) {
        if (tile.numbers == 2) paired_.emplace(blocks_, shape.depth, shape.width, threads);
    }

    std::ptrdiff_t size(std::size_t object) const { return blocks_[object].size(); }

    // Return a block, which is good until `room` is used again.
    KeyBlock at(std::size_t object, std::ptrdiff_t index, std::vector<float>& room) const {
        return paired_ ? paired_->at(object, index) : blocks_[object].at(index, room);
    }

   private:
    std::vector<KeyBlocks> blocks_;
    std::optional<PairedBlocks> paired_;
};

// Show every block of an object to every panel: all panels see one before the next is fetched.
void run(const Blocks& blocks, std::size_t object, const Tile& tile, const Panels& panels,
         std::vector<float>& room) {
    for (std::ptrdiff_t b = 0; b < blocks.size(object); ++b) {
        const KeyBlock block = blocks.at(object, b, room);
        for (std::ptrdiff_t p = 0; p < panels.size(); ++p) tile.add_block(block, panels.at(p));
    }
}

}  // namespace

void attend(const AttentionInput& input, const AttentionShape& shape, const Tile& tile, int threads,
            float* out) {
    const int most = thread_count(threads);
    const std::ptrdiff_t step = queries_per_task(shape, tile.queries, most);
    const std::vector<Task> tasks = make_tasks(shape, step);
    const Blocks blocks(input, shape, tile, most);
    const auto used = static_cast<int>(std::min(tasks.size(), static_cast<std::size_t>(most)));
    std::atomic<std::size_t> next{0};
    // Each body takes tasks until none is left, so that its buffers are made once.
    parallel_for(used, used, [&](std::int64_t) {
        Panels panels(step, shape.depth, shape.width, tile);
        std::vector<float> room;
        for (std::size_t i = next++; i < tasks.size(); i = next++) {
            const Task& task = tasks[i];
            const std::ptrdiff_t item = task.object / shape.heads, head = task.object % shape.heads;
            const std::ptrdiff_t row = (item * shape.queries + task.first) * shape.heads + head;
            Rows queries = input.query.of(task.object, shape.heads);
            queries.data = queries.at(task.first);
            panels.start(queries, task.count);
            run(blocks, static_cast<std::size_t>(task.object), tile, panels, room);
            panels.finish(out + row * shape.width, shape.heads * shape.width);
        }
    });
}

}  // namespace vkrt

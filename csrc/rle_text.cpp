#include "rle_text.h"

#include <limits>
#include <stdexcept>

namespace vkrt {

namespace {

constexpr int kBits = 5;
constexpr std::int64_t kLow = (1 << kBits) - 1;
constexpr std::int64_t kSign = 1 << (kBits - 1);
constexpr std::int64_t kMore = 1 << kBits;
constexpr std::int64_t kLast = 2 * kMore - 1;
constexpr int kMostGroups = 7;  // 35 bits, enough for any difference of two 32-bit numbers
constexpr char kZero = '0';

void add_number(std::int64_t number, std::string& text) {
    bool more = true;
    while (more) {
        const std::int64_t group = number & kLow;
        number = (number - group) / (kLow + 1);  // rounds down, as the format has it
        more = number != ((group & kSign) != 0 ? -1 : 0);
        text.push_back(static_cast<char>(kZero + (group | (more ? kMore : 0))));
    }
}

// Read the number at `place` and move behind it.
std::int64_t read_number(const char* text, std::size_t length, std::size_t& place) {
    std::int64_t number = 0;
    for (int group = 0; group < kMostGroups; ++group) {
        if (place == length) throw std::invalid_argument("the text ends inside a number");
        const std::int64_t value = static_cast<unsigned char>(text[place]) - kZero;
        if (value < 0 || value > kLast) {
            throw std::invalid_argument("the text has a character that is not between '0' and 'o'");
        }
        ++place;
        number += (value & kLow) * (std::int64_t{1} << (kBits * group));
        if ((value & kMore) == 0) {
            const bool negative = (value & kSign) != 0;
            return negative ? number - (std::int64_t{1} << (kBits * (group + 1))) : number;
        }
    }
    throw std::invalid_argument("the text has a number of more than 35 bits");
}

}  // namespace

std::string runs_to_text(const std::uint32_t* runs, std::size_t count) {
    std::string text;
    for (std::size_t i = 0; i < count; ++i) {
        const std::int64_t before = i > 2 ? runs[i - 2] : 0;
        add_number(runs[i] - before, text);
    }
    return text;
}

std::vector<std::uint32_t> text_to_runs(const char* text, std::size_t length) {
    std::vector<std::uint32_t> runs;
    std::size_t place = 0;
    while (place < length) {
        std::int64_t run = read_number(text, length, place);
        if (runs.size() > 2) run += runs[runs.size() - 2];
        if (run < 0 || run > std::numeric_limits<std::uint32_t>::max()) {
            throw std::invalid_argument("the text has a run length outside 0 to 4294967295");
        }
        runs.push_back(static_cast<std::uint32_t>(run));
    }
    return runs;
}

}  // namespace vkrt

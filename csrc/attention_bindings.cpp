#include "attention_bindings.h"

#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "arrays.h"
#include "attention.h"
#include "tile.h"

namespace vkrt {

namespace {

Precision precision_of(const std::string& name) {
    if (name == "fp32") return Precision::kFp32;
    if (name == "bf16") return Precision::kBf16;
    throw py::value_error("precision must be fp32 or bf16, not " + name);
}

std::vector<std::string> instructions(const std::string& precision) {
    std::vector<std::string> names;
    for (const Tile* tile : usable_tiles(precision_of(precision))) names.emplace_back(tile->name);
    return names;
}

const Tile& find_tile(const std::string& precision, const std::optional<std::string>& name) {
    std::string known;
    for (const Tile* tile : usable_tiles(precision_of(precision))) {
        if (!name || *name == tile->name) return *tile;
        known += (known.empty() ? "" : ", ") + std::string(tile->name);
    }
    throw py::value_error("instructions must be one of " + known + ", not " + *name);
}

// Return (N, T, D) without gaps, or (B, T, H, D) whose rows of D may lie apart.
Rows view(const py::array& array, const char* name) {
    const auto* data = static_cast<const float*>(array.data());
    if (array.ndim() != 4) {
        check_planes<float>(array, name);
        return {data, array.shape(1) * array.shape(2), 0, array.shape(2)};
    }
    check_rows<float>(array, name);
    checked_product({array.shape(0), array.shape(1), array.shape(2), array.shape(3)}, sizeof(float));
    constexpr auto size = static_cast<std::ptrdiff_t>(sizeof(float));
    return {data, array.strides(0) / size, array.strides(2) / size, array.strides(1) / size};
}

const float* view_bias(const std::optional<py::array>& bias, const AttentionShape& shape) {
    if (!bias) return nullptr;
    check_layout<float>(*bias, "bias", 2);
    if (bias->shape(0) != shape.batch || bias->shape(1) != shape.keys) {
        throw py::value_error("bias must have shape (" + std::to_string(shape.batch) + ", " +
                              std::to_string(shape.keys) + "), a number for each key");
    }
    return static_cast<const float*>(bias->data());
}

AttentionShape checked_shape(const py::array& query, const py::array& key, const py::array& value) {
    if (query.ndim() != key.ndim() || key.ndim() != value.ndim()) {
        throw py::value_error("query, key and value must have equally many dimensions");
    }
    const py::ssize_t last = query.ndim() - 1;
    const bool same_heads =
        last == 2 || (query.shape(2) == key.shape(2) && key.shape(2) == value.shape(2));
    if (query.shape(0) != key.shape(0) || key.shape(0) != value.shape(0) || !same_heads) {
        throw py::value_error("query, key and value must be of equally many objects");
    }
    if (query.shape(last) != key.shape(last)) {
        throw py::value_error("query and key must be equally deep, not " +
                              std::to_string(query.shape(last)) + " and " +
                              std::to_string(key.shape(last)));
    }
    if (key.shape(1) != value.shape(1)) {
        throw py::value_error("key and value must be equally many, not " +
                              std::to_string(key.shape(1)) + " and " +
                              std::to_string(value.shape(1)));
    }
    const py::ssize_t heads = last == 2 ? 1 : query.shape(2);
    return {query.shape(0), heads, query.shape(1), key.shape(1), key.shape(last),
            value.shape(last)};
}

py::array_t<float> attention(const py::array& query, const py::array& key, const py::array& value,
                             const std::optional<py::array>& bias, int threads,
                             const std::string& precision,
                             const std::optional<std::string>& instructions) {
    AttentionInput input{view(query, "query"), view(key, "key"), view(value, "value"), nullptr};
    const AttentionShape shape = checked_shape(query, key, value);
    input.bias = view_bias(bias, shape);
    const int used = checked_threads(threads);
    const Tile& tile = find_tile(precision, instructions);
    std::vector<py::ssize_t> sizes{shape.batch, shape.queries, shape.heads, shape.width};
    checked_product({shape.batch, shape.queries, shape.heads, shape.width}, sizeof(float));
    if (query.ndim() == 3) sizes.erase(sizes.begin() + 2);
    py::array_t<float> result(sizes);
    float* out = result.mutable_data();
    {
        const py::gil_scoped_release unlocked;
        attend(input, shape, tile, used, out);
    }
    return result;
}

py::array_t<float> attention_exp2(const py::array& exponents,
                                  const std::optional<std::string>& instructions) {
    check_layout<float>(exponents, "exponents", 1);
    const Tile& tile = find_tile("bf16", instructions);
    py::array_t<float> result(exponents.size());
    const auto* x = static_cast<const float*>(exponents.data());
    float* out = result.mutable_data();
    const std::ptrdiff_t count = exponents.size();
    {
        const py::gil_scoped_release unlocked;
        tile.exp2(x, count, out);
    }
    return result;
}

}  // namespace

void define_attention(py::module_& module) {
    module.def("attention", &attention, py::arg("query"), py::arg("key"), py::arg("value"),
               py::arg("bias") = py::none(), py::arg("threads") = 0, py::arg("precision") = "fp32",
               py::arg("instructions") = py::none(),
               "Return softmax(query key^T / sqrt(D) + bias) value of (N, Q, D), (N, K, D), "
               "(N, K, V) and (N, K) float32: (N, Q, V). Keys with a bias of -1e8 or less are left "
               "out. With heads, (N, Q, H, D), (N, K, H, D) and (N, K, H, V) of any strides but the "
               "last: (N, Q, H, V). In bf16, query, key, value and weights may be rounded to that "
               "where products are faster so.");
    module.def("attention_exp2", &attention_exp2, py::arg("exponents"),
               py::arg("instructions") = py::none(),
               "Return 2**exponents of (K,) float32, at most 0, as attention computes it.");
    module.def("attention_instructions", &instructions, py::arg("precision") = "fp32",
               "Return what attention can use on this machine, the best first.");
}

}  // namespace vkrt

"""Products of a graph, found in any form and computed in integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from vkrt.backends.onnx import OnnxBackend
from vkrt.errors import BackendError
from vkrt.export.int8.observe import observe
from vkrt.export.int8.products import Shape, find_products, shapes_of
from vkrt.export.int8.quantize import DYNAMIC, STATIC, Form, Range, quantize, weight_to_int8
from vkrt.export.int8.speed import product_model, tensor_value
from vkrt.options import Options
from vkrt.stage import Port, Stage

WIDTH, ROWS = 24, 40


def constant(name: str, array: np.ndarray) -> ir.Value:
    return ir.Value(name=name, const_value=ir.tensor(np.asarray(array, np.float32), name=name))


def model_of(nodes: list[ir.Node], x: ir.Value, weights: list[ir.Value]) -> ir.Model:
    """Return a model of nodes whose last output is y."""
    y = nodes[-1].outputs[0]
    y.name, y.type = "y", ir.TensorType(ir.DataType.FLOAT)
    for index, node in enumerate(nodes[:-1]):
        node.outputs[0].name = f"v{index}"
    opsets = {"": 20, "com.microsoft": 1}
    graph = ir.Graph([x], [y], nodes=nodes, initializers=weights, opset_imports=opsets, name="g")
    return ir.Model(graph, ir_version=10)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def product_form(form: str) -> ir.Model:
    """Return a model that computes y = x @ w + b, in one of the forms that exporters write."""
    axes = (ROWS, WIDTH) if form.startswith("gemm") else (2, ROWS // 2, WIDTH)
    x = tensor_value("x", axes)
    turned = form.endswith("turned")
    w = constant("a.layer.weight", draw(WIDTH, 8).T if turned else draw(WIDTH, 8))
    b = constant("a.layer.bias", draw(1, 8, seed=1) if form == "gemm" else draw(8, seed=1))
    weights = [w, b]
    if form.startswith("gemm"):
        node = ir.node("Gemm", [x, w, b], {"transB": int(turned), "alpha": 0.5, "beta": 2.0})
        return model_of([node], x, weights)
    if form.startswith("fused"):
        attributes = {"transB": int(turned), "alpha": 0.5}
        product = ir.node("FusedMatMul", [x, w], attributes, domain="com.microsoft")
    else:
        product = ir.node("MatMul", [x, w])
    if form == "bare":
        return model_of([product], x, weights[:1])
    operands = [b, product.outputs[0]] if form == "left" else [product.outputs[0], b]
    return model_of([product, ir.node("Add", operands)], x, weights)


def run(model: ir.Model, x: np.ndarray, folder: Path) -> np.ndarray:
    """Return y of a model with ONNX Runtime."""
    path = folder / "run.onnx"
    ir.save(model, path)
    width = (*x.shape[:-1], 8)
    stage = Stage("run", path, (Port("x", x.shape),), (Port("y", width),))
    return OnnxBackend(Options()).prepare(stage)(x)[0]


FORMS = ["matmul", "left", "bare", "gemm", "gemm turned", "fused", "fused turned"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [STATIC, DYNAMIC])
@pytest.mark.parametrize("reduced", [False, True])
def test_a_product_in_any_form_becomes_one_of_integers(
    form: str, kind: Form, reduced: bool, tmp_path: Path
) -> None:
    x = draw(*((ROWS, WIDTH) if form.startswith("gemm") else (2, ROWS // 2, WIDTH)), seed=2)
    model = product_form(form)
    wanted = run(model, x, tmp_path)
    (product,) = find_products(model.graph)
    assert product.weight.shape == (WIDTH, 8) and (product.bias is None) == (form == "bare")
    assert product.name == "a.layer"
    quantize(model, {"a.layer": kind}, {"x": Range(x.min(), x.max(), x.size)}, reduced)
    kinds = {node.op_type for node in model.graph}
    if kind == STATIC:
        assert kinds == {"QuantizeLinear", "MatMulIntegerToFloat"}
    else:
        assert kinds == {"DynamicQuantizeMatMul"}
    assert "a.layer.weight" not in model.graph.initializers
    found = run(model, x, tmp_path)
    # Half a step of the input and half a step of the weights, over WIDTH random terms.
    error = np.sqrt(np.square(found - wanted).mean() / np.square(wanted).mean())
    assert 1e-5 < error < (0.03 if reduced else 0.02)


def test_the_integers_are_those_of_the_definition(tmp_path: Path) -> None:
    model, x = product_form("matmul"), draw(2, ROWS // 2, WIDTH, seed=2)
    weight, bias = draw(WIDTH, 8), draw(8, seed=1)
    quantize(model, {"a.layer": STATIC}, {"x": Range(-2.0, 3.1, x.size)}, False)
    step = np.float32(5.1 / 255)
    zero = np.rint(2.0 / step)
    codes = np.clip(np.rint(x / step) + zero, 0, 255) - zero
    scale = np.abs(weight).max(axis=0) / 127
    wanted = codes @ np.rint(weight / scale) * (step * scale) + bias
    np.testing.assert_allclose(run(model, x, tmp_path), wanted, rtol=1e-4, atol=1e-4)


def other_product(kind: str) -> ir.Model:
    """Return a model with a product that is not one of a value with constant weights."""
    x, w, column = tensor_value("x", (8, 8)), constant("w", draw(8, 8)), constant("c", draw(8, 1))
    nodes = {
        "weights on the left": [ir.node("MatMul", [w, x])],
        "two values": [ir.node("MatMul", [x, x])],
        "a batch of matrices": [ir.node("MatMul", [x, constant("w3", draw(2, 8, 8))])],
        "turned values": [ir.node("Gemm", [x, w], {"transA": 1})],
        "a column is added": [ir.node("Gemm", [x, w, column])],
    }[kind]
    weights = [v for v in nodes[0].inputs if v is not None and v.is_graph_input() is False]
    return model_of(nodes, x, [v for v in weights if v.const_value is not None])


@pytest.mark.parametrize(
    "kind",
    [
        "weights on the left",
        "two values",
        "a batch of matrices",
        "turned values",
        "a column is added",
    ],
)
def test_other_products_stay(kind: str) -> None:
    assert find_products(other_product(kind).graph) == []


@pytest.mark.parametrize("kind", ["a column", "a value", "read twice"])
def test_a_sum_that_is_no_bias_stays(kind: str, tmp_path: Path) -> None:
    x, w = tensor_value("x", (8, 8)), constant("w", draw(8, 8))
    product = ir.node("MatMul", [x, w])
    out, column = product.outputs[0], constant("c", draw(8, 1))
    other = {"a column": column, "a value": x, "read twice": constant("b", draw(8))}[kind]
    nodes = [product, ir.node("Add", [out, other])]
    if kind == "read twice":
        nodes.append(ir.node("Mul", [nodes[-1].outputs[0], out]))
    weights = [w] + ([] if kind == "a value" else [other])
    model = model_of(nodes, x, weights)
    wanted = run(model, draw(8, 8, seed=3), tmp_path)
    (found,) = find_products(model.graph)
    assert found.bias is None
    quantize(model, {found.name: STATIC}, {"x": Range(-4, 4, 64)}, False)
    assert [n.op_type for n in model.graph][2] == "Add"
    np.testing.assert_allclose(run(model, draw(8, 8, seed=3), tmp_path), wanted, atol=0.5)


def test_products_of_one_source_share_its_integers(tmp_path: Path) -> None:
    model = product_model(Shape(ROWS, WIDTH, 8, readers=3))
    products = find_products(model.graph)
    assert shapes_of(products, {"x": ROWS * WIDTH}) == {
        product.name: Shape(ROWS, WIDTH, 8, readers=3) for product in products
    }
    quantize(model, {p.name: STATIC for p in products}, {"x": Range(-4, 4, 1)}, False)
    kinds = [node.op_type for node in model.graph]
    assert kinds == ["QuantizeLinear", *["MatMulIntegerToFloat"] * 3]


def test_equal_names_are_told_apart() -> None:
    x, w, b = tensor_value("x", (8, 8)), constant("w", draw(8, 8)), constant("a.bias", draw(8))
    first = ir.node("MatMul", [x, w])
    second = ir.node("Add", [first.outputs[0], b])
    third = ir.node("MatMul", [second.outputs[0], w])
    model = model_of([first, second, third, ir.node("Add", [third.outputs[0], b])], x, [w, b])
    names = [product.name for product in find_products(model.graph)]
    assert names == ["a", "a (y)"]


def test_a_value_that_is_always_zero(tmp_path: Path) -> None:
    model = product_form("matmul")
    quantize(model, {"a.layer": STATIC}, {"x": Range(0.0, 0.0, 1)}, False)
    found = run(model, np.zeros((2, ROWS // 2, WIDTH), np.float32), tmp_path)
    np.testing.assert_allclose(found, np.broadcast_to(draw(8, seed=1), found.shape), atol=1e-6)


def test_a_column_of_zeros_gives_its_bias(tmp_path: Path) -> None:
    weight = draw(WIDTH, 8)
    weight[:, 3] = 0
    codes, scale = weight_to_int8(weight, reduced=False)
    assert not codes[:, 3].any() and scale[3] == 1 and np.isfinite(scale).all()
    np.testing.assert_allclose(codes * scale, weight, atol=np.abs(weight).max() / 250)


@pytest.mark.parametrize(("reduced", "most"), [(False, 127), (True, 64)])
def test_reduced_weights_can_not_overflow(reduced: bool, most: int) -> None:
    codes, _ = weight_to_int8(draw(WIDTH, 8), reduced)
    assert np.abs(codes.astype(int)).max() == most
    # Two products of a byte each, added in 16 bits.
    assert (2 * 255 * most < 2**15) == reduced


def test_ranges_are_those_of_all_inputs(tmp_path: Path) -> None:
    model = product_form("matmul")
    path = tmp_path / "product.onnx"
    ir.save(model, path)
    axes = (2, ROWS // 2, WIDTH)
    stage = Stage("product", path, (Port("x", axes),), (Port("y", (2, ROWS // 2, 8)),))
    inputs = [np.full(axes, value, np.float32) for value in (-1, 3, 2)]
    assert observe(stage, path, ["x", "x"], inputs) == {"x": Range(-1.0, 3.0, ROWS * WIDTH)}
    with pytest.raises(BackendError, match="no finite range") as caught:
        observe(stage, path, ["x"], [inputs[0], np.full(axes, np.nan, np.float32)])
    assert "\n" not in str(caught.value)

"""The products of a graph with weights that never change: what quantization may touch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

__all__ = ["Product", "Shape", "find_products", "shapes_of"]

# A layer's bias or weight; a number behind it counts the parts that it was split into.
PARAMETER = re.compile(r"(.+)\.(?:bias|weight)(_\d+)?")


@dataclass(frozen=True)
class Shape:
    """Hold the sizes of a product: (rows, inner) by (inner, outer).

    Attributes:
        readers: how many products there are of the same source: they share what is made of it.
    """

    rows: int
    inner: int
    outer: int
    readers: int = 1


@dataclass(frozen=True)
class Product:
    """Hold source @ weight + bias, in whatever nodes a graph has it.

    Attributes:
        name: of its weights where the graph tells it, else of its output; no two share one.
        source: the value (..., inner) that is multiplied.
        weight: (inner, outer) float32, all factors of the nodes in it.
        bias: (outer,) float32, or None.
        nodes: what computes it, in order; nothing else reads what they hand one another.
    """

    name: str
    source: ir.Value
    weight: np.ndarray
    bias: np.ndarray | None
    nodes: tuple[ir.Node, ...]

    @property
    def output(self) -> ir.Value:
        """Return the value that it makes, bias added."""
        return self.nodes[-1].outputs[0]


@dataclass(frozen=True)
class _Factors:
    source: ir.Value
    weight: np.ndarray
    bias: np.ndarray | None = None


def find_products(graph: ir.Graph) -> list[Product]:
    """Return every product with a constant matrix on its right, in the graph's order.

    These are MatMul and com.microsoft.FusedMatMul, with the Add of a constant bias where nothing
    else reads the product, and Gemm.
    """
    found: dict[str, Product] = {}
    for node in graph:
        read = _READERS.get((node.domain, node.op_type))
        factors = read(node) if read else None
        if factors is None:
            continue
        nodes: tuple[ir.Node, ...] = (node,)
        bias = factors.bias
        if bias is None:
            addition = added_bias(node.outputs[0], factors.weight.shape[1])
            if addition is not None:
                nodes, bias = (node, addition[0]), addition[1]
        name = name_of(nodes)
        if name in found:
            name = f"{name} ({nodes[-1].outputs[0].name})"
        found[name] = Product(name, factors.source, factors.weight, bias, nodes)
    return list(found.values())


def shapes_of(products: Iterable[Product], sizes: Mapping[str, int]) -> dict[str, Shape]:
    """Return the shape of each product by name, given how many values each source has."""
    every = list(products)
    readers = Counter(product.source.name for product in every)
    shapes = {}
    for product in every:
        inner, outer = product.weight.shape
        source = str(product.source.name)
        shapes[product.name] = Shape(sizes[source] // inner, inner, outer, readers[source])
    return shapes


def name_of(nodes: tuple[ir.Node, ...]) -> str:
    """Return the name of the layer whose weights nodes read, else that of what they make.

    An exporter keeps the parameters' names of biases, and drops that of a weight it transposed.
    """
    for node in reversed(nodes):
        for value in node.inputs:
            if value is not None and value.is_initializer():
                parameter = PARAMETER.fullmatch(str(value.name))
                if parameter:
                    return parameter[1] + (parameter[2] or "")
    return str(nodes[-1].outputs[0].name)


def constant(value: ir.Value | None) -> np.ndarray | None:
    """Return the content of a float32 value that never changes, None of any other."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return None
    return tensor.numpy()


def matrix(value: ir.Value | None) -> np.ndarray | None:
    """Return the content of a constant matrix that holds anything."""
    content = constant(value)
    return content if content is not None and content.ndim == 2 and content.size else None


def vector(content: np.ndarray | None, size: int, most_axes: int) -> np.ndarray | None:
    """Return a constant that is the same for every row, as (size,); None of any other."""
    if content is None or content.ndim > most_axes:
        return None
    if content.size != 1 and content.shape not in ((size,), (1, size)):
        return None
    return np.ascontiguousarray(np.broadcast_to(content.reshape(-1), (size,)))


def added_bias(value: ir.Value, size: int) -> tuple[ir.Node, np.ndarray] | None:
    """Return the Add of a bias to a product, and the bias; None where there is none."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    node = uses[0].node
    if (node.domain, node.op_type) != ("", "Add") or node.graph is not value.graph:
        return None
    # With more axes it could give the sum more than the product has.
    bias = vector(constant(node.inputs[1 - uses[0].idx]), size, most_axes=1)
    return None if bias is None else (node, bias)


def numbers(node: ir.Node, defaults: Mapping[str, float]) -> dict[str, Any]:
    """Return attributes of a node, with what they are where it does not state them."""
    return {
        name: node.attributes[name].value if name in node.attributes else default
        for name, default in defaults.items()
    }


def read_matmul(node: ir.Node) -> _Factors | None:
    """Return what a MatMul multiplies."""
    source, weight = node.inputs[0], matrix(node.inputs[1])
    if source is None or weight is None or constant(source) is not None:
        return None
    return _Factors(source, weight)


def read_fused(node: ir.Node) -> _Factors | None:
    """Return what a FusedMatMul multiplies; its left side must lie as it is."""
    flags = numbers(
        node, {"alpha": 1.0, "transA": 0, "transB": 0, "transBatchA": 0, "transBatchB": 0}
    )
    factors = read_matmul(node)
    if factors is None or flags["transA"] or flags["transBatchA"] or flags["transBatchB"]:
        return None
    weight = factors.weight.T if flags["transB"] else factors.weight
    return _Factors(factors.source, weight * np.float32(flags["alpha"]))


def read_gemm(node: ir.Node) -> _Factors | None:
    """Return what a Gemm multiplies and adds; the sum must be a bias."""
    flags = numbers(node, {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0})
    factors = read_matmul(node)
    if factors is None or flags["transA"]:
        return None
    weight = factors.weight.T if flags["transB"] else factors.weight
    weight = weight * np.float32(flags["alpha"])
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return _Factors(factors.source, weight)
    bias = vector(constant(node.inputs[2]), weight.shape[1], most_axes=2)
    if bias is None:
        return None
    return _Factors(factors.source, weight, bias * np.float32(flags["beta"]))


_READERS: dict[tuple[str, str], Callable[[ir.Node], _Factors | None]] = {
    ("", "MatMul"): read_matmul,
    ("", "Gemm"): read_gemm,
    ("com.microsoft", "FusedMatMul"): read_fused,
}

"""Products of a graph computed in 8-bit integers; everything between them stays in float32.

The nodes are ONNX Runtime's own. What its quantization tool writes, QuantizeLinear and
DequantizeLinear around a MatMul, runs in float32 after all where a bias is added: the optimizer
makes the MatMul and the Add one Gemm before it looks for integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from onnxruntime.quantization.quant_utils import compute_scale_zp, get_qmin_qmax_for_qType

from vkrt.export.int8.products import Product, find_products
from vkrt.export.simplify import drop_unused

__all__ = [
    "DYNAMIC",
    "FP32",
    "MICROSOFT",
    "STATIC",
    "Form",
    "Range",
    "quantize",
    "replace",
    "stored",
    "weight_to_int8",
]

Form = Literal["fp32", "static", "dynamic", "rows", "blocks"]
FP32: Form = "fp32"
STATIC: Form = "static"
DYNAMIC: Form = "dynamic"

MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Range:
    """Hold the smallest and largest value that was seen, and of how many values at a time."""

    low: float
    high: float
    size: int


def quantize(
    model: ir.Model, forms: Mapping[str, Form], ranges: Mapping[str, Range], reduced: bool
) -> None:
    """Give the named products of a graph another form, in place.

    Their weights become int8, symmetric, with a scale for each column; what they multiply becomes
    uint8. "static" takes a fixed range of it, "dynamic" the range of each call.

    Args:
        model: its graph is changed; float32 weights that nothing reads any more go.
        forms: the form of products by name; one that is not named stays as it is.
        ranges: of the sources of static products, by the source's name.
        reduced: keep weights within 7 bits, see `needs_reduced_range`.
    """
    graph = model.graph
    steps: dict[str, list[ir.Value]] = {}
    for product in find_products(graph):
        form = forms.get(product.name, FP32)
        if form == FP32:
            continue
        weight, scale = weight_to_int8(product.weight, reduced)
        name = product.output.name
        right = [stored(graph, f"{name}_int8", weight), stored(graph, f"{name}_scale", scale)]
        bias = None if product.bias is None else stored(graph, f"{name}_bias", product.bias)
        if form == STATIC:
            key = str(product.source.name)
            if key not in steps:
                steps[key] = quantized_source(graph, product, ranges[key])
            codes, step, zero = steps[key]
            inputs, kind = (
                [codes, right[0], step, right[1], zero, None, bias],
                "MatMulIntegerToFloat",
            )
        else:
            inputs, kind = [product.source, *right, None, bias], "DynamicQuantizeMatMul"
        replace(graph, product, ir.node(kind, inputs, domain=MICROSOFT))
    drop_unused(graph)
    model.opset_imports.setdefault(MICROSOFT, 1)


def weight_to_int8(weight: np.ndarray, reduced: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return a matrix (inner, outer) as int8, and the scale (outer,) of its columns."""
    _, most = get_qmin_qmax_for_qType(ir.DataType.INT8, reduce_range=reduced, symmetric=True)
    scale = np.abs(weight).max(axis=0) / np.float32(most)
    # A column of zeros, or of next to nothing, has no step of its own.
    scale = np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale)
    codes = np.clip(np.rint(weight / scale), -most, most)
    return codes.astype(np.int8), scale.astype(np.float32)


def range_to_uint8(span: Range) -> tuple[np.ndarray, np.ndarray]:
    """Return the step and the zero point of values in a range, both without axes."""
    low, high = get_qmin_qmax_for_qType(ir.DataType.UINT8)
    zero, step = compute_scale_zp(np.float32(span.low), np.float32(span.high), low, high)
    return np.asarray(step, np.float32), np.asarray(zero, np.uint8)


def stored(graph: ir.Graph, name: str, content: np.ndarray) -> ir.Value:
    """Return a new weight of a graph."""
    value = ir.Value(name=name, const_value=ir.tensor(content, name=name))
    graph.register_initializer(value)
    return value


def quantized_source(graph: ir.Graph, product: Product, span: Range) -> list[ir.Value]:
    """Return what a product multiplies as uint8, its step and its zero point."""
    step, zero = range_to_uint8(span)
    name = product.source.name
    scale, offset = stored(graph, f"{name}_step", step), stored(graph, f"{name}_zero", zero)
    node = ir.node("QuantizeLinear", [product.source, scale, offset])
    node.outputs[0].name = f"{name}_uint8"
    graph.insert_before(product.nodes[0], node)
    return [node.outputs[0], scale, offset]


def replace(graph: ir.Graph, product: Product, *nodes: ir.Node) -> None:
    """Put nodes in the place of a product; the last one makes what it made."""
    ir.convenience.replace_nodes_and_values(
        graph, product.nodes[-1], product.nodes, nodes, [product.output], nodes[-1].outputs
    )

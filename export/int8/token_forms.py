"""Products of tokens in 8-bit integers, their ranges taken from the tokens as they come.

Two forms, both of operators of ONNX Runtime. ROWS: each token is divided by its largest value, so
that a fixed step of 1/127 fits all, and the product with a matrix of int8, one scale for each
column, is multiplied by that value again. BLOCKS: each 32 numbers of a token, and each 32 of a
column, have a scale of their own; slower, and several times as exact where few channels are large.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from vkrt.export.int8.products import Product, find_products
from vkrt.export.int8.quantize import (
    FP32,
    MICROSOFT,
    Form,
    replace,
    stored,
    weight_to_int8,
)
from vkrt.export.simplify import drop_unused

__all__ = ["BLOCK", "BLOCKS", "MOST", "ROWS", "block_codes", "rewrite_products"]

ROWS: Form = "rows"
BLOCKS: Form = "blocks"

BLOCK = 32
# The largest code of a value, both signs alike, and the code of 0 among those of 8 bits.
MOST, ZERO = 127, 128
# What the largest value of a token counts as at least, so that one of zeros gives zeros.
LEAST = np.float32(1e-30)


def rewrite_products(model: ir.Model, forms: Mapping[str, Form], reduced: bool) -> None:
    """Give named products of a graph another form, in place.

    Args:
        model: its graph is changed; float32 weights that nothing reads any more go.
        forms: ROWS, or BLOCKS where BLOCK divides what is summed over; products that are not
            named stay as they are.
        reduced: keep the weights of ROWS within 7 bits, see `needs_reduced_range`.
    """
    graph = model.graph
    units: dict[str, list[ir.Value]] = {}
    for product in find_products(graph):
        form = forms.get(product.name, FP32)
        if form == ROWS:
            key = str(product.source.name)
            if key not in units:
                units[key] = unit_codes(graph, product)
            by_rows(graph, product, units[key], reduced)
        elif form == BLOCKS:
            by_blocks(graph, product)
    drop_unused(graph)
    model.opset_imports.setdefault(MICROSOFT, 1)


def unit_codes(graph: ir.Graph, product: Product) -> list[ir.Value]:
    """Return codes of what a product multiplies, with the step and the zero point of them.

    Last comes what they are of: each token is divided by its largest value.
    """
    name = product.source.name
    last = stored(graph, f"{name}_last", np.array([-1], np.int64))
    least = stored(graph, f"{name}_least", np.array(LEAST))
    step = stored(graph, f"{name}_step", np.array(1 / MOST, np.float32))
    zero = stored(graph, f"{name}_zero", np.array(ZERO, np.uint8))
    size = ir.node("Abs", [product.source])
    largest = ir.node("ReduceMax", [size.outputs[0], last], {"keepdims": 1})
    most = ir.node("Max", [largest.outputs[0], least])
    unit = ir.node("Div", [product.source, most.outputs[0]])
    codes = ir.node("QuantizeLinear", [unit.outputs[0], step, zero])
    most.outputs[0].name, codes.outputs[0].name = f"{name}_most", f"{name}_codes"
    graph.insert_before(product.nodes[0], [size, largest, most, unit, codes])
    return [codes.outputs[0], step, zero, most.outputs[0]]


def by_rows(graph: ir.Graph, product: Product, unit: list[ir.Value], reduced: bool) -> None:
    """Compute a product from the codes of tokens over their largest values."""
    name, (codes, step, zero, most) = product.output.name, unit
    weight, scale = weight_to_int8(product.weight, reduced)
    right = [stored(graph, f"{name}_int8", weight), stored(graph, f"{name}_scale", scale)]
    given = [codes, right[0], step, right[1], zero]
    nodes = [ir.node("MatMulIntegerToFloat", given, domain=MICROSOFT)]
    nodes.append(ir.node("Mul", [nodes[-1].outputs[0], most]))
    if product.bias is not None:
        bias = stored(graph, f"{name}_bias", product.bias)
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], bias]))
    replace(graph, product, *nodes)


def by_blocks(graph: ir.Graph, product: Product) -> None:
    """Compute a product with a scale for each block of both factors."""
    name, (inner, outer) = product.output.name, product.weight.shape
    codes, scale = block_codes(product.weight)
    given = [
        product.source,
        stored(graph, f"{name}_uint8", codes),
        stored(graph, f"{name}_scale", scale.reshape(-1)),
        None,
        None,
        None if product.bias is None else stored(graph, f"{name}_bias", product.bias),
    ]
    # Level 4 is what makes it integers: the tokens' blocks are quantized as well.
    sizes = {"K": inner, "N": outer, "bits": 8, "block_size": BLOCK, "accuracy_level": 4}
    replace(graph, product, ir.node("MatMulNBits", given, sizes, domain=MICROSOFT))


def block_codes(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a matrix (inner, outer) as codes (outer, blocks, BLOCK), and scales (outer, blocks).

    Raises:
        ValueError: BLOCK does not divide inner.
    """
    blocks = weight.T.reshape(weight.shape[1], -1, BLOCK)
    scale = np.abs(blocks).max(axis=-1) / np.float32(MOST)
    scale = np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale)
    codes = np.clip(np.rint(blocks / scale[..., None]), -MOST, MOST) + ZERO
    return codes.astype(np.uint8), scale.astype(np.float32)

"""How much noise 8-bit integers add to a product, told from what it multiplies and its weights.

A step of size s adds noise of the variance s^2 / 12. A value's noise is given as a share of its
own mean square; those of both factors of a product add up to that of what it makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from vkrt.backends.onnx import OnnxBackend
from vkrt.errors import BackendError
from vkrt.export.int8.products import Product, find_products
from vkrt.export.int8.quantize import Form
from vkrt.export.int8.token_forms import BLOCK, BLOCKS, MOST, ROWS
from vkrt.export.marks import expand_marks
from vkrt.export.to_onnx import restore_symbols
from vkrt.options import Options
from vkrt.stage import Port, Stage

__all__ = ["Noise", "observe_noise", "weight_noise"]

# The relative noise variance of each product in each form.
Noise = dict[str, dict[Form, float]]
# Sums of squares of each source: of all values, of each token's largest, of each block's largest.
SUMS = 3
STEPS = 12 * MOST**2


def observe_noise(
    stage: Stage, draft: Path, names: Sequence[str], calls: Sequence[Sequence[np.ndarray]]
) -> Noise:
    """Return the noise that named products of a stage would have on real inputs.

    Args:
        stage: its module does not count.
        draft: the graph of it, as stage_to_onnx writes one; a file beside it comes and goes.
        names: of products.
        calls: the inputs of some calls.

    Raises:
        BackendError: ONNX Runtime can't run it, or a value is infinite or no number.
    """
    model = ir.load(draft)
    products = [p for p in find_products(model.graph) if p.name in set(names)]
    weights = {product.name: weight_noise(product.weight) for product in products}
    watch(model.graph, products)
    path = draft.with_name(f"{draft.stem}.watched.onnx")
    watched = replace(stage, outputs=(Port("sums", (SUMS * len(products),)),))
    try:
        expand_marks(model)
        restore_symbols(model, watched)
        # Not save_model: the weights stay where they lie.
        ir.save(model, path)
        sums = run_calls(replace(watched, module=path), calls)
    finally:
        path.unlink(missing_ok=True)
    if not np.isfinite(sums).all():
        raise BackendError(f"{stage.name} has values that are not finite: check the weights")
    rows = sums.reshape(len(products), SUMS)
    return {p.name: noise_of(p, r, weights[p.name]) for p, r in zip(products, rows, strict=True)}


def run_calls(stage: Stage, calls: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Return the sums of all calls together, float64."""
    backend = OnnxBackend(Options(device="cpu"))
    program = backend.prepare(stage)
    try:
        return np.sum([program(*arrays)[0].astype(np.float64) for arrays in calls], axis=0)
    finally:
        backend.close()


def noise_of(product: Product, sums: np.ndarray, weights: dict[Form, float]) -> dict[Form, float]:
    """Return the noise of a product in each form, given the sums of its source."""
    squares, rows, blocks = sums
    whole = STEPS * squares or 1.0
    found = {ROWS: float(rows * product.weight.shape[0] / whole) + weights[ROWS]}
    if BLOCKS in weights:
        found[BLOCKS] = float(blocks * BLOCK / whole) + weights[BLOCKS]
    return found


def weight_noise(weight: np.ndarray) -> dict[Form, float]:
    """Return the noise of a matrix (inner, outer) in each form that it can have."""
    inner, outer = weight.shape
    whole = STEPS * float(np.vdot(weight, weight)) or 1.0
    found = {ROWS: float(np.square(largest(weight, 0)).sum()) * inner / whole}
    if inner % BLOCK == 0:
        blocks = largest(weight.reshape(-1, BLOCK, outer), 1)
        found[BLOCKS] = float(np.square(blocks).sum()) * BLOCK / whole
    return found


def largest(array: np.ndarray, axis: int) -> np.ndarray:
    """Return the largest absolute values along an axis; no copy of the array is made."""
    return np.maximum(array.max(axis), -array.min(axis))


def watch(graph: ir.Graph, products: Sequence[Product]) -> None:
    """Give a graph one output, the SUMS of the source of each product, in place of its own."""
    last = constant(graph, "watch_last", [-1])
    whole, block = constant(graph, "watch_whole", [1]), constant(graph, "watch_block", [-1, BLOCK])
    sums: list[ir.Value] = []
    for product in products:
        source, nodes = product.source, list[ir.Node]()

        def add(kind: str, *given: ir.Value, _nodes: list[ir.Node] = nodes, **how: int) -> ir.Value:
            _nodes.append(ir.node(kind, given, how))
            return _nodes[-1].outputs[0]

        size = add("Abs", source)
        wide = add("Reshape", size, block) if product.weight.shape[0] % BLOCK == 0 else size
        for values in (size, *(add("ReduceMax", v, last, keepdims=0) for v in (size, wide))):
            sums.append(add("Reshape", add("ReduceSumSquare", values, keepdims=0), whole))
        graph.extend(nodes)
    joined = ir.node("Concat", sums, {"axis": 0})
    joined.outputs[0].name, joined.outputs[0].type = "sums", ir.TensorType(ir.DataType.FLOAT)
    graph.append(joined)
    graph.outputs.clear()
    graph.outputs.append(joined.outputs[0])


def constant(graph: ir.Graph, name: str, numbers: Sequence[int]) -> ir.Value:
    """Return a new vector of whole numbers in a graph."""
    value = ir.Value(name=name, const_value=ir.tensor(np.array(numbers, np.int64), name=name))
    graph.register_initializer(value)
    return value

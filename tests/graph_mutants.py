"""An exported graph made wrong in one place, as a fault of an exporter would make it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

__all__ = ["KINDS", "write_mutants"]

Change = Callable[[], None]

# softmax(q (k + b)) = softmax(q k): what is added to all keys alike changes nothing.
WITHOUT_EFFECT = ("k_proj", "key")
# What is as large as this stands for infinity, as in the bias of what is not to be read.
INFINITE = 1e6
SCALES = ("Mul", "Div")


def content(value: ir.Value | None) -> np.ndarray | None:
    """Return the content of a constant in float32."""
    if value is None or value.const_value is None:
        return None
    array = value.const_value.numpy()
    return array if array.dtype == np.float32 else None


def put(graph: ir.Graph, node: ir.Node, index: int, array: np.ndarray) -> None:
    """Let a node read another constant."""
    name = f"mutant_{len(graph.initializers)}"
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    node.replace_input_with(index, value)


def constants(graph: ir.Graph, node: ir.Node, draw: np.random.Generator) -> Iterator[Change]:
    """Give changes of one constant: another number, or another row of a weight."""
    for index, value in enumerate(node.inputs):
        array = content(value)
        if array is None or node.op_type in ("Pad", "Resize", "Clip", "Where"):
            continue
        changed = array.copy()
        if array.ndim == 2 and node.op_type in ("MatMul", "Gemm"):
            changed[:, draw.integers(array.shape[1])] *= 1.5
        elif array.size == 1 and 0 < abs(array.item()) < INFINITE and node.op_type in SCALES:
            changed *= 1.1
        else:
            continue
        if not np.array_equal(changed, array):
            yield partial(put, graph, node, index, changed)


def swaps(graph: ir.Graph, node: ir.Node, draw: np.random.Generator) -> Iterator[Change]:
    """Give exchanges of two inputs whose order counts."""
    pairs = {"Sub": (0, 1), "Div": (0, 1), "LayerNormalization": (1, 2), "Where": (1, 2)}
    if node.op_type not in pairs:
        return
    one, other = pairs[node.op_type]
    first, second = node.inputs[one], node.inputs[other]

    def swap() -> None:
        node.replace_input_with(one, second)
        node.replace_input_with(other, first)

    yield swap


def biases(graph: ir.Graph, node: ir.Node, draw: np.random.Generator) -> Iterator[Change]:
    """Give the loss of a bias."""
    places = {"Add": (1,), "Gemm": (2,), "Conv": (2,)}.get(node.op_type, ())
    for index in places:
        value = node.inputs[index] if index < len(node.inputs) else None
        array = content(value)
        if array is None or array.ndim != 1 or not array.any():
            continue
        if value is not None and not any(part in str(value.name) for part in WITHOUT_EFFECT):
            yield partial(put, graph, node, index, np.zeros_like(array))


KINDS = {"constant": constants, "swap": swaps, "bias": biases}


def write_mutants(path: Path, out: Path, kind: str, count: int, seed: int) -> Iterator[str]:
    """Write graphs of a file with one change each, and give a name of what was changed."""
    total = len(list(changes(ir.load(path), kind, seed)))
    chosen = np.random.default_rng(seed).permutation(total)[:count]
    for number in chosen:
        model = ir.load(path)
        ir.external_data.load_to_model(model)
        name, change = list(changes(model, kind, seed))[number]
        change()
        ir.save(model, out)
        yield f"{path.stem} {kind} of {name}"


def changes(model: ir.Model, kind: str, seed: int) -> Iterator[tuple[str, Change]]:
    """Give every change of a kind that a graph has a place for."""
    draw = np.random.default_rng(seed)
    for node in model.graph:
        for change in KINDS[kind](model.graph, node, draw):
            yield f"{node.op_type} {node.name or node.outputs[0].name}", change

"""How large the arrays are that a stage's graphs make: known before any of them runs.

A graph can ask for terabytes in a few bytes: ConstantOfShape with a large shape, an array repeated
or concatenated with itself again and again, the sum of a column and a row. So a graph is followed
with nothing but shapes, and with those few numbers that shapes are made of, each symbol of its
ports being a few. Source of the rules: https://onnx.ai/onnx/operators
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from vkrt.array_rules import RULES, Array, UnknownSizeError, constant
from vkrt.onnx_graph import Graph, Node
from vkrt.stage import Port, Stage
from vkrt.steps import CutFile, Piece
from vkrt.weights.safety_limits import MAX_GROWTH, MIN_ARRAY_ELEMENTS

__all__ = ["check_sizes"]

# What every symbol of the ports stands for here.
FEW = 3


def check_sizes(stage: Stage, graphs: Mapping[Path, Graph]) -> None:
    """Refuse a stage that makes arrays far larger than its ports and its weights.

    Args:
        stage: of a bundle; its ports fit its graphs.
        graphs: by the path of their file, at least those of the stage.

    Raises:
        ValueError: names the operator, or one whose inputs do not fit it.
    """
    whole, is_cut = stage.module, isinstance(stage.module, CutFile)
    given = {port.name: as_array(port) for port in stage.inputs}
    ports = [*given.values(), *map(as_array, stage.outputs)]
    most = max([MIN_ARRAY_ELEMENTS, *(MAX_GROWTH * prod(port.shape) for port in ports)])
    follow(graphs[whole.path if is_cut else whole], dict(given), most)
    if not is_cut:
        return
    held = dict(given)
    for step in whole.steps:
        if isinstance(step, Piece):
            inner = {name: held[name] for name in step.inputs}
            follow(graphs[step.path], inner, most)
            held.update((name, inner[name]) for name in step.outputs)
        else:
            query, _, value, *_ = (held[name].shape for name in step.inputs)
            held[step.outputs[0]] = Array((*query[:-1], value[-1]), None)


def as_array(port: Port) -> Array:
    """Return what a port takes or gives where every symbol is FEW."""
    return Array(tuple(FEW if isinstance(size, str) else size for size in port.shape), None)


def follow(graph: Graph, held: dict[str, Array], most: int) -> None:
    """Add every array that a graph makes to those that are held.

    Raises:
        ValueError: one has more than `most` elements and than the weights, or can't be told.
    """
    largest = max((prod(each.shape) for each in graph.constants.values()), default=0)
    for name, tensor in graph.constants.items():
        held[name] = constant(tensor)
    for node in graph.nodes:
        made = apply(node, held)
        for name, array in zip(node.outputs, made, strict=False):
            if prod(array.shape) > max(most, largest):
                raise ValueError(f"{node.operator} makes an array of shape {array.shape}")
            held[name] = array


def apply(node: Node, held: Mapping[str, Array]) -> Sequence[Array]:
    """Return what a node makes.

    Raises:
        ValueError: its inputs do not fit it, or how much it makes depends on values.
    """
    try:
        # Nothing stands for an optional input that is not there.
        inputs: list[Any] = [held[name] if name else None for name in node.inputs]
        made = RULES[node.operator](node, inputs)
    except UnknownSizeError:
        raise ValueError(f"how much {node.operator} makes depends on values") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        raise ValueError(f"an operator {node.operator} has inputs that do not fit it") from None
    # Optional outputs are no larger than the first.
    return made if len(made) >= len(node.outputs) else [*made, *extra(made, node.outputs)]


def extra(made: Sequence[Array], names: Iterable[str]) -> list[Array]:
    """Return an array for each output that a rule says nothing of."""
    return [Array(made[0].shape, None) for _ in list(names)[len(made) :]]

"""An exported graph cut at its marks, so that a kernel of our own runs between the pieces."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from vkrt.export.marks import is_mark
from vkrt.steps import Attention, Piece, Step

__all__ = ["Cut", "cut_at_marks"]


@dataclass(frozen=True)
class Cut:
    """Hold the steps of a graph, and the model of each piece by its path."""

    steps: tuple[Step, ...]
    pieces: dict[Path, ir.Model]


class Order:
    """Say in which round each node of a graph runs: first a piece, then the marks it leads to.

    A node runs as late as it can, so that what passes from piece to piece is little. What is
    computed of weights alone has no round: each piece computes what it needs of it.
    """

    def __init__(self, graph: ir.Graph) -> None:
        fixed: set[ir.Node] = set()
        for node in graph:
            if all(is_fixed(value, fixed) for value in node.inputs):
                fixed.add(node)
        self.fixed = fixed
        self.nodes = [node for node in graph if node not in fixed]
        self.round: dict[ir.Node, int] = {}
        self._place_marks()
        self.last = max(self.round.values()) + 1
        for node in reversed(self.nodes):
            if not is_mark(node):
                readers = [use.node for value in node.outputs for use in value.uses()]
                self.round[node] = min((self.round[r] for r in readers), default=self.last)

    def _place_marks(self) -> None:
        """Place marks as early as they can run: behind those that they depend on."""
        earliest: dict[ir.Node, int] = {}
        for node in self.nodes:
            makers = [made_by(value) for value in node.inputs]
            earliest[node] = max(
                (earliest[maker] + is_mark(maker) for maker in makers if maker in earliest),
                default=0,
            )
            if is_mark(node):
                self.round[node] = earliest[node]

    def of(self, number: int) -> tuple[list[ir.Node], list[ir.Node]]:
        """Return the plain nodes and the marks of a round."""
        here = [node for node in self.nodes if self.round[node] == number]
        return [n for n in here if not is_mark(n)], [n for n in here if is_mark(n)]


def cut_at_marks(model: ir.Model, path: Path) -> Cut | None:
    """Return the steps of a model whose whole file is `path`; None where it has no mark.

    The pieces lie beside it, with a number in their names; the model is not changed.
    """
    graph = model.graph
    if not any(map(is_mark, graph)):
        return None
    order = Order(graph)
    steps: list[Step] = []
    pieces: dict[Path, ir.Model] = {}
    for number in range(order.last + 1):
        plain, marks = order.of(number)
        if plain:
            inputs, outputs = read_by(plain, order.fixed), made_for_others(plain)
            part = ir.convenience.extract(graph, inputs, outputs)
            forget_symbols(part)
            place = path.with_suffix(f".{number}{path.suffix}")
            pieces[place] = ir.Model(part, ir_version=model.ir_version)
            steps.append(Piece(place, names(inputs), names(outputs)))
        for mark in marks:
            read = [value for value in mark.inputs if value is not None]
            steps.append(Attention(names(read), (str(mark.outputs[0].name),)))
    return Cut(tuple(steps), pieces)


def made_by(value: ir.Value | None) -> ir.Node | None:
    """Return the node that makes a value; None for inputs and constants."""
    return None if value is None else value.producer()


def is_fixed(value: ir.Value | None, fixed: Collection[ir.Node]) -> bool:
    """Tell whether a value is a constant, or made by nodes that read nothing else."""
    return value is None or value.is_initializer() or made_by(value) in fixed


def read_by(nodes: Sequence[ir.Node], fixed: Collection[ir.Node]) -> list[ir.Value]:
    """Return what nodes read that none of them makes; what is fixed is their own."""
    own = set(nodes)
    read = [value for node in nodes for value in node.inputs]
    outside = [v for v in read if made_by(v) not in own and not is_fixed(v, fixed)]
    return [value for value in dict.fromkeys(outside) if value is not None]


def made_for_others(nodes: Sequence[ir.Node]) -> list[ir.Value]:
    """Return what nodes make that others read, or the caller."""
    own = set(nodes)
    made = [value for node in nodes for value in node.outputs]
    return [v for v in made if v.is_graph_output() or any(u.node not in own for u in v.uses())]


def names(values: Sequence[ir.Value]) -> tuple[str, ...]:
    """Return the names of values."""
    return tuple(str(value.name) for value in values)


def forget_symbols(graph: ir.Graph) -> None:
    """Keep the sizes that are numbers: the tracer's names for the others mean nothing here."""
    values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape([d if isinstance(d, int) else None for d in value.shape])

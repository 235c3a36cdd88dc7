"""What vkrt has to know of an .onnx file before a runtime reads it, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["External", "Graph", "GraphPort", "Node", "OnnxFile", "Tensor"]


@dataclass(frozen=True)
class External:
    """Say where a tensor is that an .onnx file keeps outside itself, as the file states it."""

    location: str
    offset: int
    length: int


@dataclass(frozen=True)
class Tensor:
    """Hold what a graph says of a constant.

    Attributes:
        name: its name, "" in an attribute.
        dtype: numpy's name of its type.
        shape: of it.
        values: its content where that is a few whole numbers or floats, else None.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    values: tuple[float, ...] | None


@dataclass(frozen=True)
class GraphPort:
    """Hold an input or output of a graph.

    Attributes:
        dtype: numpy's name of its type.
        shape: a number, a symbol or None for what is not stated; None where no axis is stated.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None


@dataclass(slots=True)
class Node:
    """Hold a node of a graph.

    Attributes:
        operator: its kind, behind its domain where that is not ONNX's own: "com.microsoft.Gelu".
        inputs, outputs: names; "" stands for none.
        numbers: attributes of whole numbers.
        tensors: attributes of one tensor.
        has_graphs: whether it runs graphs of its own.
    """

    operator: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    numbers: dict[str, list[int]] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    has_graphs: bool = False


@dataclass
class Graph:
    """Hold a graph: its nodes, its constants by name, and its inputs and outputs by name."""

    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, GraphPort] = field(default_factory=dict)
    outputs: dict[str, GraphPort] = field(default_factory=dict)


@dataclass
class OnnxFile:
    """Hold what an .onnx file says.

    Attributes:
        graph: the one that runs.
        external: where its tensors outside are, those of every graph in it.
        extras: parts that no export of vkrt has: functions, training, sparse tensors.
    """

    graph: Graph = field(default_factory=Graph)
    external: set[External] = field(default_factory=set)
    extras: set[str] = field(default_factory=set)

"""Whether the ports of a bundle's stages fit the graphs in its .onnx files. Torch-free."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TypeAlias

from vkrt.onnx_graph import Graph, GraphPort
from vkrt.stage import Port, Stage
from vkrt.steps import Attention, CutFile, Piece

__all__ = ["check_ports"]

Size: TypeAlias = "int | str | None"
# What is known of an array between the pieces of a stage: None stands for any.
Array: TypeAlias = "tuple[str, tuple[Size, ...] | None]"


def check_ports(stage: Stage, graphs: Mapping[Path, Graph]) -> None:
    """Refuse a stage whose ports are not the inputs and outputs of its graphs.

    Args:
        stage: of a bundle.
        graphs: by the path of their file, at least those of the stage.

    Raises:
        ValueError: says which port or array it is.
    """
    whole, is_cut = stage.module, isinstance(stage.module, CutFile)
    check_whole(stage, graphs[whole.path if is_cut else whole])
    if is_cut:
        check_pieces(stage, graphs)


def check_whole(stage: Stage, graph: Graph) -> None:
    """Hold the ports of a stage against the graph that is all of it."""
    symbols: dict[str, str] = {}
    for kind, ports, found in (
        ("input", stage.inputs, graph.inputs),
        ("output", stage.outputs, graph.outputs),
    ):
        check_names(kind, [port.name for port in ports], found)
        for port in ports:
            check_type(port.name, port.dtype, found[port.name].dtype)
            check_shape(port, found[port.name], symbols)
    if len(set(symbols.values())) != len(symbols):
        raise ValueError("two symbols of its ports are one in the graph")
    free = {size for port in stage.outputs for size in port.shape if isinstance(size, str)}
    unbound = sorted(free - set(stage.symbols))
    if unbound:
        raise ValueError(f"its outputs have the symbol {unbound[0]!r:.40}, which no input has")


def check_names(kind: str, wanted: Collection[str], found: Collection[str]) -> None:
    """Refuse ports that are not those of the graph."""
    if len(set(wanted)) != len(wanted):
        raise ValueError(f"two {kind}s have one name")
    lacking = sorted(set(wanted) ^ set(found))
    if lacking:
        where = "the graph lacks" if lacking[0] in wanted else "the manifest lacks"
        raise ValueError(f"{where} the {kind} {lacking[0]!r:.80}")


def check_type(name: str, wanted: str, found: str) -> None:
    """Refuse a port whose elements are of another type than the graph's."""
    if wanted != found:
        raise ValueError(f"{name!r:.80} is {wanted}, but {found or 'of no type'} in the graph")


def check_shape(port: Port, found: GraphPort, symbols: dict[str, str]) -> None:
    """Refuse a port of another shape than the graph's; `symbols` are those met so far."""
    shape = found.shape
    if shape is None or len(shape) != len(port.shape):
        raise ValueError(f"{port.name!r:.80} has not the shape {port.shape} in the graph")
    for wanted, size in zip(port.shape, shape, strict=True):
        if isinstance(wanted, str) and isinstance(size, str):
            fits = symbols.setdefault(wanted, size) == size
        elif isinstance(wanted, str):
            fits = size is None
        else:
            fits = size == wanted
        if not fits:
            raise ValueError(f"{port.name!r:.80} has shape {port.shape}, but {shape} in the graph")


def check_pieces(stage: Stage, graphs: Mapping[Path, Graph]) -> None:
    """Hold the steps of a stage against the graphs of its pieces and against one another."""
    held: dict[str, Array] = {port.name: (port.dtype, port.shape) for port in stage.inputs}
    for step in stage.module.steps:
        if isinstance(step, Piece):
            check_piece(step, graphs[step.path], held)
        else:
            held[step.outputs[0]] = attended(step, held)
    for port in stage.outputs:
        match(port.name, held[port.name], (port.dtype, port.shape))


def check_piece(piece: Piece, graph: Graph, held: dict[str, Array]) -> None:
    """Hold a piece against its graph and against what it is given; what it makes goes into held."""
    where = piece.path.name
    check_names(f"input of {where}", piece.inputs, graph.inputs)
    absent = sorted(set(piece.outputs) - set(graph.outputs))
    if absent:
        raise ValueError(f"{where} lacks the output {absent[0]!r:.80}")
    for name in piece.inputs:
        match(name, held[name], (graph.inputs[name].dtype, graph.inputs[name].shape))
    for name in piece.outputs:
        held[name] = graph.outputs[name].dtype, graph.outputs[name].shape


def attended(step: Attention, held: Mapping[str, Array]) -> Array:
    """Return what an attention makes."""
    shapes = []
    for name in step.inputs:
        dtype, shape = held[name]
        check_type(name, "float32", dtype)
        shapes.append(shape)
    query, key, value, *bias = shapes
    for shape, least in ((query, 3), (key, 3), (value, 3), *((each, 2) for each in bias)):
        if shape is not None and len(shape) < least:
            raise ValueError(f"an attention reads an array of shape {shape}")
    if query is None or key is None or value is None:
        return "float32", None
    if not agree(query[-1], key[-1]) or not agree(key[-2], value[-2]):
        raise ValueError(f"an attention reads arrays of shapes {query}, {key} and {value}")
    return "float32", (*query[:-1], value[-1])


def match(name: str, given: Array, wanted: Array) -> None:
    """Refuse an array that can't be what the next one to read it wants."""
    check_type(name, wanted[0], given[0])
    if given[1] is None or wanted[1] is None:
        return
    pairs = zip(given[1], wanted[1], strict=False)
    if len(given[1]) != len(wanted[1]) or not all(agree(*pair) for pair in pairs):
        raise ValueError(f"{name!r:.80} has shape {given[1]} where {wanted[1]} is read")


def agree(one: Size, other: Size) -> bool:
    """Tell whether two sizes may be equal."""
    return not (isinstance(one, int) and isinstance(other, int)) or one == other

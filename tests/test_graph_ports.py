"""Ports of a manifest that do not fit the graph are refused when the bundle is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toys import edit, write_toy

from vkrt.bundle import read_bundle
from vkrt.errors import CheckpointError
from vkrt.graph_ports import check_ports
from vkrt.onnx_graph import Graph, GraphPort
from vkrt.stage import Port, Stage
from vkrt.steps import Attention, CutFile, Piece

WHOLE, FIRST, LAST = Path("s.onnx"), Path("s.0.onnx"), Path("s.1.onnx")
SHAPE = (2, "keys", 8)


def set_port(side: str, **changes: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content["stages"]["product"][side][0].update(changes)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_port("inputs", name="z"), "the manifest lacks the input 'x'"),
        (set_port("outputs", name="z"), "the manifest lacks the output 'y'"),
        (set_port("inputs", dtype="int32"), "'x' is int32, but float32 in the graph"),
        (set_port("outputs", dtype="float16"), "'y' is float16, but float32 in the graph"),
        (set_port("inputs", shape=["n", 5]), "'x' has shape ('n', 5), but ('n', 4)"),
        (set_port("inputs", shape=["n"]), "'x' has not the shape"),
        (set_port("inputs", shape=[1, 4]), "'x' has shape (1, 4), but ('n', 4)"),
        (set_port("inputs", shape=["n", "m"]), "'x' has shape ('n', 'm'), but ('n', 4)"),
        (set_port("outputs", shape=["m", 3]), "two symbols of its ports are one in the graph"),
        (lambda c: c["stages"]["product"]["inputs"].pop(), "the manifest lacks the input 'x'"),
    ],
)
def test_a_port_that_does_not_fit(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], words: str
) -> None:
    write_toy(tmp_path / "toy")
    edit(tmp_path / "toy", change)
    with pytest.raises(
        CheckpointError, match=r"stage product of .* does not fit its graph"
    ) as caught:
        read_bundle(tmp_path / "toy")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def port(name: str, *shape: int | str | None, dtype: str = "float32") -> GraphPort:
    return GraphPort(name, dtype, shape)


def ports(*found: GraphPort) -> dict[str, GraphPort]:
    return {each.name: each for each in found}


def cut_stage() -> tuple[Stage, dict[Path, Graph]]:
    """Return y = last(attention(q, k, v)) with q, k, v = first(x)."""
    steps = (
        Piece(FIRST, ("x",), ("q", "k", "v")),
        Attention(("q", "k", "v"), ("read",)),
        Piece(LAST, ("read",), ("y",)),
    )
    stage = Stage("s", CutFile(WHOLE, steps), (Port("x", SHAPE),), (Port("y", SHAPE),))
    graphs = {
        WHOLE: Graph(inputs=ports(port("x", *SHAPE)), outputs=ports(port("y", *SHAPE))),
        FIRST: Graph(
            inputs=ports(port("x", 2, None, 8)),
            outputs=ports(*(port(name, 2, None, 8) for name in "qkv")),
        ),
        LAST: Graph(
            inputs=ports(port("read", None, None, 8)), outputs=ports(port("y", 2, None, 8))
        ),
    }
    return stage, graphs


def test_pieces_that_fit() -> None:
    stage, graphs = cut_stage()
    check_ports(stage, graphs)
    graphs[FIRST].outputs["k"] = GraphPort("k", "float32", None)
    check_ports(stage, graphs)


@pytest.mark.parametrize(
    ("path", "side", "found", "words"),
    [
        (FIRST, "inputs", port("x", 3, None, 8), "'x' has shape (2, 'keys', 8) where (3"),
        (FIRST, "inputs", port("x", 2, None, 8, dtype="int32"), "'x' is int32, but float32"),
        (FIRST, "inputs", port("z", 2, None, 8), "the manifest lacks the input of s.0.onnx 'z'"),
        (FIRST, "outputs", port("q", 2, None, 7), "an attention reads arrays of shapes"),
        (FIRST, "outputs", port("k", 8), "an attention reads an array of shape (8,)"),
        (FIRST, "outputs", port("v", 2, None, 8, dtype="float16"), "'v' is float32, but float16"),
        (LAST, "inputs", port("read", 3, None, 8), "'read' has shape (2, None, 8) where (3"),
        (LAST, "outputs", port("y", 2, None, 9), "'y' has shape (2, None, 9) where"),
        (LAST, "outputs", port("y", 2, None), "'y' has shape (2, None) where"),
    ],
)
def test_a_piece_that_does_not_fit(path: Path, side: str, found: GraphPort, words: str) -> None:
    stage, graphs = cut_stage()
    getattr(graphs[path], side)[found.name] = found
    with pytest.raises(ValueError) as caught:
        check_ports(stage, graphs)
    assert words in str(caught.value)


def test_a_piece_without_an_output() -> None:
    stage, graphs = cut_stage()
    del graphs[FIRST].outputs["v"]
    with pytest.raises(ValueError, match=r"s\.0\.onnx lacks the output 'v'"):
        check_ports(stage, graphs)


def test_symbols() -> None:
    stage, graphs = cut_stage()
    plain = replace(stage, module=WHOLE)
    for shape in ((2, None, 8), (2, "any", 8)):
        graphs[WHOLE].inputs = ports(port("x", *shape))
        graphs[WHOLE].outputs = ports(port("y", *shape))
        check_ports(plain, graphs)
    graphs[WHOLE].outputs = ports(port("y", 2, "other", 8))
    with pytest.raises(ValueError, match="'y' has shape"):
        check_ports(plain, graphs)
    free = replace(plain, outputs=(Port("y", (2, "unbound", 8)),))
    with pytest.raises(ValueError, match="symbol 'unbound', which no input has"):
        check_ports(free, graphs)

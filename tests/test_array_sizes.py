"""The sizes of arrays within a stage are known before it runs, and those without bound refused."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from toys import graph_model, reseal, write_toy

from vkrt.array_rules import RULES
from vkrt.array_sizes import FEW, as_array, follow
from vkrt.bundle import read_bundle
from vkrt.errors import CheckpointError
from vkrt.onnx_file import parse_onnx
from vkrt.operators import ALLOWED
from vkrt.stage import Stage
from vkrt.steps import CutFile


def test_every_operator_has_a_rule() -> None:
    assert set(RULES) == ALLOWED


def made_by(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every array that ONNX Runtime makes in a run."""
    names = [name for node in model.graph.node for name in node.output if name]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return dict(zip(names, (a.shape for a in session.run(names, feeds)), strict=True))


def check_as_run(stage: Stage) -> int:
    """Hold the shapes that are told against those of a run; return how many there were."""
    path = stage.module.path if isinstance(stage.module, CutFile) else stage.module
    held = {port.name: as_array(port) for port in stage.inputs}
    feeds = {
        port.name: np.ones([FEW if isinstance(s, str) else s for s in port.shape], port.dtype)
        for port in stage.inputs
    }
    found = made_by(onnx.load(path), feeds)
    follow(parse_onnx(path.read_bytes()).graph, held, 2**60)
    exact = 0
    for name, shape in found.items():
        assert np.prod(held[name].shape) >= np.prod(shape), (stage.name, name)
        exact += held[name].shape == shape
    assert exact > 0.95 * len(found)
    return len(found)


def test_shapes_are_those_of_a_run(pico_bundle: Path) -> None:
    assert sum(map(check_as_run, read_bundle(pico_bundle).stages.values())) > 1000


ONE = np.ones((1, 4), np.float32)


def node(kind: str, *inputs: str, to: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, list(inputs), [to], **attributes)


def ints(name: str, *values: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def chain(kind: str, times: int) -> list[onnx.NodeProto]:
    """Return y = f(f(...)), each with its input twice."""
    names = ["x", *(f"v{i}" for i in range(times - 1)), "y"]
    extra = {"axis": 0} if kind == "Concat" else {}
    return [node(kind, a, a, to=b, **extra) for a, b in pairwise(names)]


HUGE = 2**40
CASES: dict[str, tuple[list[onnx.NodeProto], list[onnx.TensorProto]]] = {
    "a stated shape": ([node("ConstantOfShape", "s")], [ints("s", HUGE)]),
    "a shape of many sides": ([node("ConstantOfShape", "s")], [ints("s", *[2**8] * 5)]),
    "a stretched array": ([node("Expand", "x", "s")], [ints("s", HUGE, 1, 4)]),
    "an array many times": ([node("Tile", "x", "s")], [ints("s", HUGE, 1)]),
    "padding": ([node("Pad", "x", "s")], [ints("s", 0, 0, HUGE, 0)]),
    "a range": (
        [
            node("Range", "a", "s", "b", to="r"),
            node("Identity", "r"),
        ],
        [
            *(numpy_helper.from_array(np.array(v, np.int64), n) for n, v in (("a", 0), ("b", 1))),
            numpy_helper.from_array(np.array(HUGE, np.int64), "s"),
        ],
    ),
    "a picture made large": (
        [
            node("Unsqueeze", "x", "a", to="i"),
            node("Resize", "i", "", "", "s", mode="linear"),
        ],
        [ints("a", 0, 1), ints("s", 1, 1, 2**20, 2**20)],
    ),
    "a picture made large by factors": (
        [
            node("Unsqueeze", "x", "a", to="i"),
            node("Resize", "i", "", "s", mode="nearest"),
        ],
        [ints("a", 0, 1), numpy_helper.from_array(np.array([1, 1, 2e5, 2e5], np.float32), "s")],
    ),
    "a computed shape": (
        [
            node("Shape", "x", to="a"),
            node("Mul", "a", "m", to="b"),
            node("Mul", "b", "b", to="c"),
            node("ConstantOfShape", "c"),
        ],
        [ints("m", 2**12)],
    ),
    "concatenated with itself": (chain("Concat", 40), []),
    "squared and squared": (
        [node("Shape", "x", to="v0")]
        + [node("Mul", f"v{i}", f"v{i}", to=f"v{i + 1}") for i in range(60)]
        + [node("Expand", "x", "v60")],
        [],
    ),
    "a column plus a row": (
        [
            node("ConstantOfShape", "s", to="a"),
            node("ConstantOfShape", "t", to="b"),
            node("Add", "a", "b"),
        ],
        [ints("s", 2**22, 1), ints("t", 1, 2**22)],
    ),
    "an outer product": (
        [
            node("ConstantOfShape", "s", to="a"),
            node("ConstantOfShape", "t", to="b"),
            node("MatMul", "a", "b"),
        ],
        [ints("s", 2**22, 1), ints("t", 1, 2**22)],
    ),
    "gathered again and again": (
        [node("ConstantOfShape", "s", to="a"), node("Gather", "a", "i")],
        [ints("s", 1, 2**22), ints("i", *[0] * 4096)],
    ),
    "a window with margins": (
        [
            node("Unsqueeze", "x", "a", to="i"),
            node("MaxPool", "i", kernel_shape=[1, 1], pads=[2**30, 0, 2**30, 0]),
        ],
        [ints("a", 0, 1)],
    ),
    "a window undone": (
        [
            node("Unsqueeze", "x", "a", to="i"),
            node("ConvTranspose", "i", "w", strides=[2**30, 2**30]),
        ],
        [ints("a", 0, 1), numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "w")],
    ),
}
OF_VALUES: dict[str, list[onnx.NodeProto]] = {
    "ConstantOfShape": [
        node("Reshape", "x", "m", to="f"),
        helper.make_node("Cast", ["f"], ["i"], to=7),
        node("ConstantOfShape", "i"),
    ],
    "Expand": [
        node("Reshape", "x", "m", to="f"),
        helper.make_node("Cast", ["f"], ["i"], to=7),
        node("Expand", "x", "i"),
    ],
}


def sealed(folder: Path, nodes: list[Any], constants: list[Any]) -> Path:
    """Return a toy bundle with another graph."""
    write_toy(folder / "toy")
    model = graph_model(nodes, constants)
    (folder / "toy" / "product.onnx").write_bytes(model.SerializeToString())
    reseal(folder / "toy")
    return folder / "toy"


@pytest.mark.parametrize("case", list(CASES))
def test_what_would_take_all_memory(tmp_path: Path, case: str) -> None:
    folder = sealed(tmp_path, *CASES[case])
    with pytest.raises(CheckpointError, match=r"makes an array of shape|do not fit|how much") as e:
        read_bundle(folder)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("operator", list(OF_VALUES))
def test_sizes_that_depend_on_values(tmp_path: Path, operator: str) -> None:
    folder = sealed(tmp_path, OF_VALUES[operator], [ints("m", -1)])
    with pytest.raises(CheckpointError, match=f"how much {operator} makes depends on values"):
        read_bundle(folder)


def test_inputs_that_do_not_fit(tmp_path: Path) -> None:
    folder = sealed(tmp_path, [node("Transpose", "x", perm=[0, 5])], [])
    with pytest.raises(CheckpointError, match="an operator Transpose has inputs that do not fit"):
        read_bundle(folder)

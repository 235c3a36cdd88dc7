"""A bundle of one tiny stage, made without torch: y = x @ w for x of n rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vkrt.bundle import building
from vkrt.manifest import MANIFEST, Header, digest_of, write_manifest
from vkrt.stage import Port, Stage

__all__ = ["HEADER", "WEIGHT", "edit", "graph_model", "product_stage", "reseal", "write_toy"]

WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3)
HEADER = Header(
    vkrt="1.2.3",
    model="sam2.1-nano",
    image_size=64,
    precision="fp32",
    fingerprint="abc",
    preprocessing={"mean": [0.5], "std": [1.0], "resize": "none"},
    parity=[{"stage": "product", "output": "y", "max_abs": 0.0}],
)


def graph_model(
    nodes: list[Any], initializers: list[Any], rows: str | int = "n", width: int = 3
) -> onnx.ModelProto:
    """Return a model with input x (rows, 4) and output y (rows, width)."""
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, width])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def product_stage(folder: Path) -> Stage:
    """Write the stage's .onnx file and return the stage."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    path = folder / "product.onnx"
    path.write_bytes(
        graph_model([node], [numpy_helper.from_array(WEIGHT, "w")]).SerializeToString()
    )
    return Stage("product", path, (Port("x", ("n", 4)),), (Port("y", ("n", 3)),))


def write_toy(target: Path, force: bool = False) -> None:
    """Write a bundle of the stage."""
    with building(target, force) as folder:
        write_manifest(folder, HEADER, [product_stage(folder)])


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest: `change` gets its content, in place."""
    path = folder / MANIFEST
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def reseal(folder: Path) -> None:
    """Make the manifest true again, as somebody who means harm would."""

    def renew(content: dict[str, Any]) -> None:
        for name, entry in content["files"].items():
            path = folder / name
            entry.update(bytes=path.stat().st_size, sha256=digest_of(path))

    edit(folder, renew)

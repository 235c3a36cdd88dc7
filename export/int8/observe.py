"""What values of a graph are like on real inputs: their range and how many there are."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from vkrt.backends.onnx import OnnxBackend
from vkrt.errors import BackendError
from vkrt.export.files import load_model, save_model
from vkrt.export.int8.quantize import Range
from vkrt.export.marks import expand_marks
from vkrt.options import Options
from vkrt.stage import Port, Stage

__all__ = ["observe"]

# What is computed of each value, with the dtype of the answer.
ANSWERS = {"ReduceMin": "float32", "ReduceMax": "float32", "Size": "int64"}


def observe(
    stage: Stage, draft: Path, names: Iterable[str], inputs: Iterable[np.ndarray]
) -> dict[str, Range]:
    """Return the ranges of values over all inputs.

    Args:
        stage: of one input; its module does not count.
        draft: the graph of it, as stage_to_onnx writes one.
        names: of values of its graph.
        inputs: arrays for its input.

    Raises:
        BackendError: ONNX Runtime can't run it, or a value is infinite or no number.
    """
    wanted = list(dict.fromkeys(names))
    backend = OnnxBackend(Options(device="cpu"))
    with tempfile.TemporaryDirectory() as folder:
        program = backend.prepare(watched(stage, draft, wanted, Path(folder) / "watched.onnx"))
    lows, highs, sizes = [], [], np.zeros(len(wanted), np.int64)
    for array in inputs:
        found = np.array(program(array), np.float64).reshape(len(wanted), len(ANSWERS))
        lows.append(found[:, 0])
        highs.append(found[:, 1])
        sizes = np.maximum(sizes, found[:, 2].astype(np.int64))
    backend.close()
    low, high = np.min(lows, axis=0), np.max(highs, axis=0)
    if not np.isfinite(low + high).all():
        raise BackendError(
            f"{stage.name} has no finite range in {np.count_nonzero(~np.isfinite(low + high))} of "
            f"{len(wanted)} values: check the weights"
        )
    return {
        name: Range(float(least), float(most), int(size))
        for name, least, most, size in zip(wanted, low, high, sizes, strict=True)
    }


def watched(stage: Stage, draft: Path, names: list[str], path: Path) -> Stage:
    """Return a stage that gives ANSWERS of values in place of its outputs, written to a path."""
    model = load_model(draft)
    graph = model.graph
    values = ir.convenience.create_value_mapping(graph)
    graph.outputs.clear()
    ports = []
    for index, name in enumerate(names):
        for kind, dtype in ANSWERS.items():
            attributes = {} if kind == "Size" else {"keepdims": 0}
            node = ir.node(kind, [values[name]], attributes)
            answer = node.outputs[0]
            answer.name = f"{kind}_{index}"
            answer.shape = ir.Shape(())
            answer.type = ir.TensorType(ir.DataType.INT64 if kind == "Size" else ir.DataType.FLOAT)
            graph.append(node)
            graph.outputs.append(answer)
            ports.append(Port(answer.name, (), dtype))
    expand_marks(model)
    save_model(model, path)
    return Stage(stage.name, path, stage.inputs, tuple(ports))

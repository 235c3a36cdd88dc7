"""Models in .onnx files, their weights beside them where one file can't hold both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from vkrt.stage import Stage
from vkrt.steps import CutFile, Piece

__all__ = ["load_model", "move", "save_model"]

# A protobuf holds 2 GiB; beside the weights lies the graph.
MOST_INLINE_BYTES = 2**31 - 2**26


def load_model(path: Path) -> ir.Model:
    """Return the model of a file, all of its weights in memory, so that the file may go."""
    model = ir.load(path)
    ir.external_data.load_to_model(model)
    return model


def save_model(model: ir.Model, path: Path) -> None:
    """Write a model; weights over 2 GB go into a second file beside it, path.data."""
    large = weight_bytes(model) > MOST_INLINE_BYTES
    ir.save(model, path, external_data=f"{path.name}.data" if large else None)


def weight_bytes(model: ir.Model) -> int:
    """Return how many bytes the weights of a model take."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def move(stage: Stage, folder: Path) -> Stage:
    """Put a stage's files in the place of those that a folder has of it."""
    module = stage.module
    path = Path(module)
    for old in folder.glob(f"{stage.name}.*"):
        old.unlink()
    for new in path.parent.glob(f"{stage.name}.*"):
        new.rename(folder / new.name)
    if not isinstance(module, CutFile):
        return replace(stage, module=folder / path.name)
    steps = [
        replace(step, path=folder / step.path.name) if isinstance(step, Piece) else step
        for step in module.steps
    ]
    return replace(stage, module=CutFile(folder / path.name, tuple(steps)))

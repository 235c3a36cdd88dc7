"""Models in .onnx files, their weights beside them where one file can't hold both."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from vkrt.export import to_onnx

__all__ = ["load_model", "save_model"]


def load_model(path: Path) -> ir.Model:
    """Return the model of a file, all of its weights in memory, so that the file may go."""
    model = ir.load(path)
    ir.external_data.load_to_model(model)
    return model


def save_model(model: ir.Model, path: Path) -> None:
    """Write a model; weights over 2 GB go into a second file beside it, path.data."""
    large = to_onnx.weight_bytes(model) > to_onnx.MOST_INLINE_BYTES
    ir.save(model, path, external_data=f"{path.name}.data" if large else None)

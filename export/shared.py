"""Weights of several models, each kept once in a file beside their .onnx files."""

from __future__ import annotations

import filecmp
import hashlib
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

__all__ = ["keep_one", "save_sharing"]

LEAST_BYTES = 1024
# Runtimes map the file; a page is the least that they can.
PAGE = 4096


def save_sharing(models: Mapping[Path, ir.Model], data: Path) -> None:
    """Write models; what of their weights is larger than 1 KB goes into `data`.

    Args:
        models: by the path of their file, all in the folder of `data`.
        data: the file to write.
    """
    places: dict[str, int] = {}
    with data.open("wb") as file:
        for model in models.values():
            for value in model.graph.initializers.values():
                tensor = value.const_value
                if tensor is None or tensor.nbytes < LEAST_BYTES:
                    continue
                content = tensor.tobytes()
                digest = hashlib.sha256(content).hexdigest()
                if digest not in places:
                    file.seek(-file.tell() % PAGE, 1)
                    places[digest] = file.tell()
                    file.write(content)
                value.const_value = ir.ExternalTensor(
                    data.name,
                    places[digest],
                    len(content),
                    tensor.dtype,
                    shape=ir.Shape(tensor.numpy().shape),
                    name=str(value.name),
                    base_dir=data.parent,
                )
    for path, model in models.items():
        ir.save(model, path)


def keep_one(folder: Path) -> None:
    """Delete every data file of a folder that equals another, which is then read in its place.

    Stages of one module differ in their graphs; their weights are the same, in the same order.

    Args:
        folder: of stages, each a file `name.onnx` and maybe pieces `name.0.onnx` and so on, with
            weights in `name.onnx.data`.
    """
    kept: list[Path] = []
    for data in sorted(folder.glob("*.onnx.data")):
        twin = next((other for other in kept if filecmp.cmp(other, data, shallow=False)), None)
        if twin is None:
            kept.append(data)
            continue
        for path in folder.glob(f"{data.name.removesuffix('onnx.data')}*onnx"):
            read_from(twin, path)
        data.unlink()


def read_from(data: Path, path: Path) -> None:
    """Let an .onnx file read its weights from a data file that equals its own."""
    model = ir.load(path)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            value.const_value = ir.ExternalTensor(
                data.name,
                tensor.offset,
                tensor.length,
                tensor.dtype,
                shape=tensor.shape,
                name=tensor.name,
                base_dir=data.parent,
            )
    ir.save(model, path)

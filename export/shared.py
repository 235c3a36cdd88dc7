"""Several models in .onnx files that keep their weights in one file beside them, each once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

__all__ = ["save_sharing"]

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

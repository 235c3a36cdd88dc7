"""A whole bundle: every stage exported, checked and written with its manifest, or nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, replace

from vkrt.bundle import building
from vkrt.export.check import Figure, check_stage, refuse_failures
from vkrt.export.to_onnx import stage_to_onnx
from vkrt.manifest import Header, write_manifest
from vkrt.stage import Stage

__all__ = ["write_bundle"]


def write_bundle(
    header: Header, stages: Iterable[Stage], out: str | os.PathLike[str], force: bool = False
) -> None:
    """Export stages into a bundle.

    Args:
        header: what the manifest is to say; the parity figures are added.
        stages: their modules are torch modules in float32 on the CPU.
        out: the folder to make.
        force: replace a bundle that is there.

    Raises:
        OutputError: the folder can't be made, or exists.
        BackendError: torch can't export a stage, or an output is off; nothing is written.
    """
    with building(out, force) as folder:
        figures: list[Figure] = []
        written = []
        for stage in stages:
            path = folder / f"{stage.name}.onnx"
            stage_to_onnx(stage, path, header.precision)
            figures += check_stage(stage, path, header.precision)
            written.append(replace(stage, module=path))
        refuse_failures(figures)
        measured = replace(header, parity=[asdict(figure) for figure in figures])
        write_manifest(folder, measured, written)

"""A whole bundle: every stage exported, checked and written with its manifest, or nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, replace

from vkrt.bundle import building
from vkrt.export.check import Figure, check_stage, refuse_failures
from vkrt.export.int8.recipe import ENCODER, Int8, quantize_encoder
from vkrt.export.to_onnx import stage_to_onnx
from vkrt.manifest import Header, write_manifest
from vkrt.stage import Stage

__all__ = ["write_bundle"]


def write_bundle(
    header: Header,
    stages: Iterable[Stage],
    out: str | os.PathLike[str],
    force: bool = False,
    int8: Int8 | None = None,
) -> None:
    """Export stages into a bundle.

    Args:
        header: what the manifest is to say; the figures of this export are added.
        stages: their modules are torch modules in float32 on the CPU.
        out: the folder to make.
        force: replace a bundle that is there.
        int8: how to quantize the image encoder, where that is the header's precision.

    Raises:
        OutputError: the folder can't be made, or exists.
        BackendError: torch can't export a stage, an output is off, or int8 gains nothing or loses
            masks; nothing is written.
    """
    modules = {stage.name: stage for stage in stages}
    quantized = header.precision == "int8"
    precision = "fp32" if quantized else header.precision
    with building(out, force) as folder:
        figures: dict[str, list[Figure]] = {}
        written: dict[str, Stage] = {}
        for name, stage in modules.items():
            path = folder / f"{name}.onnx"
            made = stage_to_onnx(stage, path, precision, may_cut=not quantized)
            figures[name] = check_stage(stage, path, precision)
            if made != path:
                figures[name] += check_stage(stage, made, precision)
            written[name] = replace(stage, module=made)
        refuse_failures([figure for found in figures.values() for figure in found])
        if quantized:
            record = quantize_encoder(written, header, int8 or Int8())
            header = replace(header, quantization=record)
            path = written[ENCODER].module
            figures[ENCODER] = check_stage(modules[ENCODER], path, "int8")
            refuse_failures(figures[ENCODER])
        parity = [asdict(figure) for found in figures.values() for figure in found]
        write_manifest(folder, replace(header, parity=parity), written.values())

"""A whole bundle: every stage exported, checked and written with its manifest, or nothing."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

from vkrt.bundle import building
from vkrt.export.check import Expectation, Figure, compare, expect, refuse_failures
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
    files: Mapping[str, Path] | None = None,
) -> None:
    """Export stages into a bundle.

    Args:
        header: what the manifest is to say; the figures of this export are added.
        stages: their modules are torch modules in float32 on the CPU. Each is let go before the
            next one is asked for, and before its file is run: one that comes from a generator
            may so be dropped in time.
        out: the folder to make.
        force: replace a bundle that is there.
        int8: how to quantize the image encoder, where that is the header's precision.
        files: others that belong to it, by their names in the bundle.

    Raises:
        OutputError: the folder can't be made, or exists.
        BackendError: torch can't export a stage, an output is off, or int8 gains nothing or loses
            masks; nothing is written.
    """
    quantized = header.precision == "int8"
    precision = "fp32" if quantized else header.precision
    with building(out, force) as folder:
        figures: dict[str, list[Figure]] = {}
        expected: dict[str, Expectation] = {}
        written: dict[str, Stage] = {}
        for stage in stages:
            name, path = stage.name, folder / f"{stage.name}.onnx"
            expected[name] = expect(stage, precision)
            made = stage_to_onnx(stage, path, precision, may_cut=not quantized)
            written[name] = replace(stage, module=made)
            # ONNX Runtime takes as much memory again, and what torch traced refers to itself.
            del stage
            gc.collect()
            forms = [path] if made == path else [path, made]
            figures[name] = [figure for form in forms for figure in compare(expected[name], form)]
            refuse_failures(figures[name])
        if quantized:
            record = quantize_encoder(written, header, int8 or Int8())
            header = replace(header, quantization=record)
            wanted = replace(expected[ENCODER], precision="int8")
            figures[ENCODER] = compare(wanted, written[ENCODER].module)
            refuse_failures(figures[ENCODER])
        for name, source in (files or {}).items():
            shutil.copyfile(source, folder / name)
        parity = [asdict(figure) for found in figures.values() for figure in found]
        write_manifest(folder, replace(header, parity=parity), written.values())

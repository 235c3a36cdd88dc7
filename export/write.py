"""A whole bundle: every stage exported, checked and written with its manifest, or nothing."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from vkrt.bundle import building
from vkrt.export.check import Figure, hold, refuse_failures, worse_of
from vkrt.export.expectation import Expectation, expect
from vkrt.export.int8.recipe import Int8
from vkrt.export.int8.stages import quantize_stages, wants_draft
from vkrt.export.progress import Progress, Report, ignore
from vkrt.export.shared import keep_one
from vkrt.export.to_onnx import stage_to_onnx
from vkrt.manifest import Header, write_manifest
from vkrt.stage import Stage
from vkrt.steps import CutFile

__all__ = ["write_bundle"]


def write_bundle(
    header: Header,
    stages: Iterable[Stage],
    out: str | os.PathLike[str],
    force: bool = False,
    int8: Int8 | None = None,
    files: Mapping[str, Path] | None = None,
    report: Report = ignore,
    names: Sequence[str] = (),
) -> None:
    """Export stages into a bundle.

    Args:
        header: what the manifest is to say; the figures of this export are added.
        stages: their modules are torch modules in float32 on the CPU. Each is let go before the
            next one is asked for, and before its file is run: one that comes from a generator
            may so be dropped in time.
        out: the folder to make.
        force: replace a bundle that is there.
        int8: how to quantize the image encoder or the transformer, where that is the header's
            precision.
        files: others that belong to it, by their names in the bundle.
        report: gets what is being done, and which share of all work is done.
        names: of the stages, for the report, where they come from a generator.

    Raises:
        OutputError: the folder can't be made, or exists.
        BackendError: torch can't export a stage, an output is off, or int8 gains nothing or loses
            too much; nothing is written.
    """
    quantized = header.precision == "int8"
    precision = "fp32" if quantized else header.precision
    if isinstance(stages, Collection):
        names = [stage.name for stage in stages]
    progress = Progress(report, names, quantized)
    with building(out, force) as folder:
        figures: dict[str, list[Figure]] = {}
        expected: dict[str, Expectation] = {}
        written: dict[str, Stage] = {}
        drafts: dict[str, Path] = {}
        for stage in stages:
            name, path = stage.name, folder / f"{stage.name}.onnx"
            progress.start(name, "computing what it should give")
            expected[name] = expect(stage, precision)
            progress.start(name, "tracing")
            if quantized and wants_draft(name):
                drafts[name] = folder / f"{name}.draft.onnx"
            made = stage_to_onnx(stage, path, precision, may_cut=True, draft=drafts.get(name))
            written[name] = replace(stage, module=made)
            # ONNX Runtime takes as much memory again, and what torch traced refers to itself.
            del stage
            gc.collect()
            progress.start(name, "checking")
            figures[name] = hold_against(expected[name], made)
            progress.finish(name)
        if quantized:
            progress.quantize()
            changed, header = quantize_stages(written, drafts, header, files or {}, int8 or Int8())
            for name, quick in changed.items():
                written[name] = quick
                # Products in integers came from a draft; others have but their attentions rounded.
                wanted = replace(expected[name], precision="int8" if name in drafts else "bf16")
                figures[name] = hold_against(wanted, quick.module)
        # Only now: what quantizes a stage replaces all of its files.
        keep_one(folder)
        for name, source in (files or {}).items():
            shutil.copyfile(source, folder / name)
        parity = [asdict(figure) for found in figures.values() for figure in found]
        write_manifest(folder, replace(header, parity=parity), written.values())
    progress.end()


def hold_against(expected: Expectation, made: Path | CutFile) -> list[Figure]:
    """Return how far a file of a stage is off.

    Where it is cut, the whole file is held against the smallest inputs and its steps, which have
    the same operators but for the attentions, against all others.

    Raises:
        BackendError: an output is off by too much.
    """
    if isinstance(made, CutFile):
        small, large = expected.parted()
        figures = list(map(worse_of, hold(small, made.path), hold(large, made)))
    else:
        figures = hold(expected, made)
    refuse_failures(figures)
    return figures

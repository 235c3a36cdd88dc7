"""A checkpoint of Stable Diffusion 3.5 becomes a bundle, one part in memory at a time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vkrt import __version__
from vkrt.export.int8.recipe import Int8
from vkrt.export.progress import Report, ignore
from vkrt.export.sd35_tokenizers import find_tokenizers
from vkrt.export.write import write_bundle
from vkrt.manifest import SD35, Header
from vkrt.models.sd35.record import to_record
from vkrt.models.sd35.stages import PARTS
from vkrt.weights.sd35 import Sd35Weights, open_sd35
from vkrt.weights.sd35_stages import LazyStages

__all__ = ["export_sd35"]


def export_sd35(
    name: str | None,
    checkpoint: Path | None,
    out: Path,
    precision: str = "fp32",
    *,
    force: bool = False,
    encoders: Mapping[str, str | os.PathLike[str] | None] | None = None,
    tokenizers: Mapping[str, Path] | None = None,
    controlnet: Path | None = None,
    int8: Int8 | None = None,
    report: Report = ignore,
) -> None:
    """Write the stages whose weights are there, and the tokenizers, as a bundle.

    At most one part is in memory, in fp32, and then its session instead: what the transformer's
    weights take in fp32, and some more.

    Args:
        name, checkpoint, encoders, controlnet: as open_sd35 takes them.
        out: the folder to make.
        precision: "fp32"; "fp16" to store large weights so; or "int8" for a transformer whose
            products are in 8-bit integers where that is faster.
        force: replace a bundle that is there.
        tokenizers: their folders or files, by "clip_l", "clip_g" and "t5"; None looks beside the
            weights.
        int8: how to quantize.
        report: gets what is being done, and which share of all work, 0 to 1, is done.

    Raises:
        CheckpointError: weights or a tokenizer are damaged or missing.
        DownloadError, UnknownModelError: as open_sd35.
        BackendError: torch can't export a stage, an output is off, or int8 gains nothing or
            loses too much.
        GenerationError: the package tokenizers is missing.
        OutputError: the folder can't be made, or exists.
    """
    weights = open_sd35(checkpoint, name, encoders=encoders or {}, controlnet=controlnet)
    for part in ("clip_l", "clip_g", "vae_decoder"):
        weights.needed(part)
    given = weights.tokenizer_folders() if tokenizers is None else tokenizers
    found = find_tokenizers(given, with_t5="t5" in weights.parts)
    stages = LazyStages(weights, {})
    header = Header(
        vkrt=__version__,
        model=weights.name,
        image_size=0,
        precision=precision,
        fingerprint=weights.fingerprint(),
        family=SD35,
        settings=settings_of(weights, stages, found.names),
    )
    chosen = [stage for stage in PARTS if is_wanted(stage, weights)]
    # A generator keeps no stage.
    made = (stages[stage] for stage in chosen)
    write_bundle(header, made, out, force, int8, found.files, report, chosen)


def is_wanted(stage: str, weights: Sd35Weights) -> bool:
    """Tell whether a stage belongs to a bundle: its part is there, and what leads it as well."""
    if stage == "mmdit_controlled" and weights.controlnet is None:
        return False
    return PARTS[stage] in weights.parts


def settings_of(
    weights: Sd35Weights, stages: LazyStages, tokenizers: Mapping[str, str]
) -> dict[str, Any]:
    """Return what the engine needs beside the stages, as vkrt.loading_sd35 reads it."""
    control = weights.controlnet
    return {
        "config": to_record(weights.config),
        "controlnet": None if control is None else to_record(control),
        "control_kind": weights.control or "",
        "tokenizers": dict(tokenizers),
        # What they take when they run, in fp32, whatever they are stored in.
        "weights": {name: stages.bytes(name) for name in stages if is_wanted(name, weights)},
    }

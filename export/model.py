"""A checkpoint becomes a bundle."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from vkrt import __version__
from vkrt.export.progress import Report, ignore
from vkrt.manifest import Header
from vkrt.media.image import MEAN, STD
from vkrt.media.tokenizer_files import locate
from vkrt.weights.fingerprint import fingerprint

__all__ = [
    "PRECISIONS",
    "PREPROCESSING",
    "export_pictures",
    "export_weights",
]

PRECISIONS = ("fp32", "fp16", "int8")
# How a photo becomes the input of the first stage, as a manifest states it.
PREPROCESSING = {
    "mean": list(MEAN),
    "std": list(STD),
    "resize": "antialiased bilinear, sides stretched",
}


def export_weights(
    name: str | None,
    source: Path | None,
    out: Path,
    precision: str,
    image_size: int | None,
    started: Callable[[str], None] = lambda name: None,
    force: bool = True,
    photos_only: bool = False,
    calibration: Path | None = None,
    allow_loss: bool = False,
    report: Report = ignore,
) -> None:
    """Write a checkpoint as a bundle; `started` gets the model's name once the weights are in.

    Args:
        report: gets what is being done, and which share of all work, 0 to 1, is done.

    The other arguments are those of vkrt.exporting.export_model.
    """
    from vkrt.export.int8.calibration import find_photos
    from vkrt.export.int8.recipe import Int8
    from vkrt.export.write import write_bundle
    from vkrt.models.sam2.stage_set import all_stages
    from vkrt.models.sam2.stages import image_stages
    from vkrt.weights.sam2 import load_sam2

    int8 = Int8(() if calibration is None else find_photos(calibration), allow_loss)
    known, module = load_sam2(source, name, image_size)
    started(known.name)
    header = Header(
        vkrt=__version__,
        model=known.name,
        image_size=known.config.image_size,
        precision=precision,
        fingerprint=fingerprint(module),
        preprocessing=PREPROCESSING,
    )
    stages = image_stages(module) if photos_only else all_stages(module)
    write_bundle(header, list(stages.values()), out, force, int8, report=report)


def export_pictures(
    name: str | None,
    source: Path | None,
    out: Path,
    precision: str,
    encoders: Mapping[str, str | os.PathLike[str] | None] | None = None,
    tokenizers: Mapping[str, str | os.PathLike[str]] | str | os.PathLike[str] | None = None,
    control_model: str | os.PathLike[str] | None = None,
    force: bool = True,
    allow_loss: bool = False,
    report: Report = ignore,
) -> None:
    """Write a checkpoint of Stable Diffusion 3.5 as a bundle.

    The arguments are those of vkrt.exporting.export_model, and `report` as of export_weights.
    """
    from vkrt.export.int8.recipe import Int8
    from vkrt.export.sd35 import export_sd35

    given = (
        tokenizers if tokenizers is None or isinstance(tokenizers, Mapping) else locate(tokenizers)
    )
    export_sd35(
        name,
        source,
        out,
        precision,
        force=force,
        encoders=encoders,
        tokenizers=None if given is None else {part: Path(path) for part, path in given.items()},
        controlnet=None if control_model is None else Path(control_model),
        int8=Int8(allow_loss=allow_loss),
        report=report,
    )

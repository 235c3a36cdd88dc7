"""Export a model by its name or file: what `vkrt export` runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from vkrt import backends, catalog
from vkrt.arguments import flag, path
from vkrt.bundle import Bundle, check_target, read_bundle
from vkrt.errors import BackendError, ImageError, OutputError
from vkrt.export.cache import Exportable
from vkrt.export.model import PRECISIONS, export_pictures, export_weights
from vkrt.export.progress import Report, ignore
from vkrt.load_arguments import check_sources
from vkrt.meant import Paths, understand
from vkrt.options import Options, cache_folder, check_export_allowed
from vkrt.temporary import claim, explained

__all__ = ["export_model", "export_to_cache"]


def export_model(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    precision: str = "fp32",
    image_size: int | None = None,
    force: bool = False,
    photos_only: bool = False,
    calibration: str | os.PathLike[str] | None = None,
    allow_loss: bool = False,
    encoders: Mapping[str, str | os.PathLike[str] | None] | None = None,
    tokenizers: Paths | None = None,
    control_model: str | os.PathLike[str] | None = None,
    report: Report = ignore,
) -> Bundle:
    """Write a model as a bundle, which vkrt.load runs without torch.

    Args:
        model, checkpoint, image_size, encoders, control_model: as in load.
        out: the folder to make.
        precision: "fp32"; "fp16" for weights in half the bytes and arithmetic in fp32; or "int8"
            for an image encoder, or a transformer that makes pictures, whose products are in 8-bit
            integers where that is faster on this machine and costs little: on held-out scenes the
            mean IoU of masks to fp32 is at least 0.98; velocities err by at most 5%, and latents
            after four steps have at least 30 dB.
        force: replace a bundle that is there.
        photos_only: leave out the stages that track through video.
        calibration: a folder of photos like those that an int8 model is to see; their ranges
            count besides those of procedural scenes.
        allow_loss: write an int8 bundle that is as fast as can be, whatever it loses.
        tokenizers: of a model that makes pictures, as in load; they go into the bundle.
        report: is called with what is being done and which share of all work, 0 to 1, is done.

    Raises:
        OutputError: the folder can't be made, or exists.
        BackendError: packages are missing, exports are forbidden, the bundle would not give what
            PyTorch gives, or int8 is not faster here or loses too much.
        ImageError: the calibration folder has no photo, or one that can't be read.
        UnknownModelError, CheckpointError, DownloadError: as in load.
    """
    check_sources(model, checkpoint, image_size, precision, encoders, tokenizers, control_model)
    path("out", out, kind=OutputError)
    if calibration is not None:
        path("calibration", calibration, kind=ImageError)
    for name, value in (("force", force), ("photos_only", photos_only), ("allow_loss", allow_loss)):
        flag(name, value, kind=BackendError)
    check_export_allowed(model)
    lacking = backends.needed_to_export()
    if lacking:
        raise BackendError(f"export needs {lacking}: run pip install 'vkrt[torch,cpu]'")
    if precision not in PRECISIONS:
        raise BackendError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if precision != "int8" and (calibration is not None or allow_loss):
        raise BackendError("calibration and allowed loss are of int8: add --precision int8")
    check_target(Path(out), force)
    meant = understand(model, checkpoint)
    if meant.makes_pictures and (image_size is not None or photos_only or calibration is not None):
        raise BackendError(
            f"{model} makes pictures of any size, which needs no photos: leave out image_size, "
            "photos_only and calibration"
        )
    if not meant.makes_pictures and meant.name is not None:
        catalog.find(meant.name, image_size)
    # From before the weights are read, which takes a while, until the bundle is in its place.
    with explained(out), claim(out):
        if meant.makes_pictures:
            export_pictures(
                meant.name,
                meant.source,
                Path(out),
                precision,
                encoders,
                tokenizers,
                control_model,
                force=force,
                allow_loss=allow_loss,
                report=report,
            )
        else:
            export_weights(
                meant.name,
                meant.source,
                Path(out),
                precision,
                image_size,
                force=force,
                photos_only=photos_only,
                calibration=None if calibration is None else Path(calibration),
                allow_loss=allow_loss,
                report=report,
            )
        return read_bundle(out)


def export_to_cache(
    model: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    precision: str = "fp32",
    image_size: int | None = None,
    cache: Path | None = None,
    report: Report = ignore,
) -> Bundle:
    """Export a model that segments into the cache folder, where vkrt.load finds it.

    Args:
        model, checkpoint, image_size: as in load.
        precision: as in export_model.
        cache: the cache folder; None is the default one.
        report: is called with what is being done and which share of all work, 0 to 1, is done.

    Raises:
        BackendError: it makes pictures, or as in export_model.
        OutputError: the cache can't be written.
        UnknownModelError, CheckpointError, DownloadError: as in load.
    """
    meant = understand(model, checkpoint)
    if meant.makes_pictures:
        raise BackendError(
            f"{model} makes pictures, and vkrt.load looks for no bundle of it in the cache: give "
            "it a folder of its own with `vkrt export`"
        )
    if precision not in PRECISIONS:
        raise BackendError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    there = meant.bundle()
    if there is not None:
        return there
    options = Options(precision=precision, cache=cache or cache_folder())
    wanted = Exportable.of(meant.name, meant.source, image_size, options)
    return wanted.find() or wanted.export(report)

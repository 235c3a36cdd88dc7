"""From the weights of SAM 2, or a bundle, to an engine that segments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from vkrt import backends, catalog
from vkrt.backends.base import Backend
from vkrt.bundle import Bundle, is_bundle, read_bundle
from vkrt.engines.sam2_image import Segmenter
from vkrt.errors import CheckpointError
from vkrt.export.cache import find_bundle
from vkrt.export.model import PREPROCESSING
from vkrt.fitness import check_runs, warn_of_overflow
from vkrt.manifest import SAM2
from vkrt.meant import Meant
from vkrt.options import Options, default_backend
from vkrt.stage import Stage
from vkrt.weights.fingerprint import fingerprint

__all__ = ["load_segmenter", "packaged_bundle"]

# What the image engine runs; a bundle that lacks one is refused before anything runs.
STAGES = ("image_encoder", "mask_decoder", "mask_refiner")


def load_segmenter(meant: Meant, image_size: int | None, options: Options) -> Segmenter:
    """Return the engine of a model; the arguments are those of vkrt.load, understood.

    Raises:
        UnknownModelError, CheckpointError, DownloadError, BackendError: as in vkrt.load.
    """
    name, source = meant.name, meant.source
    if name is not None:
        catalog.find(name, image_size)
    bundle = meant.bundle()
    if bundle is not None:
        check_wanted(bundle, name, image_size, options)
        return from_bundle(bundle, options)
    if options.backend == "auto":
        options = replace(options, backend=default_backend())
    if name is not None and source is None:
        packaged = packaged_bundle(name, image_size, options)
        if packaged is not None:
            return from_bundle(packaged, options)
    if backends.may_use_bundle(options):
        # Where there is no PyTorch to fall back on, why there is no bundle is what counts.
        required = backends.runs_bundles(options.backend) or not can_fall_back(options)
        found = find_bundle(name, source, image_size, options, required)
        if found is not None:
            return from_bundle(found, options)
    return from_weights(name, source, image_size, options)


def can_fall_back(options: Options) -> bool:
    """Tell whether PyTorch could run what no bundle is to be had of."""
    if options.precision == "int8":
        return False
    found = backends.candidates(options.device)
    return any(candidate.name == "eager" and candidate.usable for candidate in found)


def packaged_bundle(name: str, image_size: int | None, options: Options) -> Bundle | None:
    """Return the bundle that ships with a model, if that is what the options ask for.

    Returns:
        None where the model has none, where it is of another input size or precision, and where
        it is not ONNX Runtime that is to run the model.

    Raises:
        CheckpointError: it is damaged.
        BackendError: the onnx backend is asked for and can't run.
    """
    known = catalog.find(name, image_size)
    folder = known.packaged_bundle
    if folder is None or not is_bundle(folder):
        return None
    # Its own precision is of what it stores alone: it computes in fp32, which is what "auto" is.
    if not backends.may_use_bundle(replace(options, precision="auto")):
        return None
    try:
        bundle = read_bundle(folder)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; this one came with vkrt: reinstall it") from None
    held = bundle.header
    as_wanted = options.precision in ("auto", held.precision)
    return bundle if as_wanted and known.config.image_size == held.image_size else None


def from_weights(
    name: str | None, source: Path | None, image_size: int | None, options: Options
) -> Segmenter:
    """Return a model that runs a checkpoint as PyTorch has it."""
    if options.backend == "auto":
        # Where nothing can run, this names all that could be installed and not PyTorch alone.
        backends.choose("auto", options.device)
    backend = "eager" if options.backend == "auto" else options.backend
    chosen = backends.create(replace(options, backend=backend))
    # Behind `create`, so that a missing torch is told in one line and not as an ImportError.
    from vkrt.models.sam2.stage_set import all_stages
    from vkrt.weights.sam2 import load_sam2

    known, module = load_sam2(source, name, image_size, options.cache)
    return segmenter(known, all_stages(module), chosen, fingerprint(module), options)


def from_bundle(bundle: Bundle, options: Options) -> Segmenter:
    """Return a model that runs a bundle.

    Raises:
        CheckpointError: it lacks a stage, or was made for other preprocessing than this
            version has.

    Warns:
        RuntimeWarning: it is an int8 bundle from a machine whose CPU could do more than this one.
    """
    header = bundle.header
    known = catalog.find(header.model, header.image_size)
    for name in STAGES:
        bundle.stages[name]
    if dict(header.preprocessing) != PREPROCESSING:
        raise CheckpointError(
            f"{bundle.folder} was exported for other preprocessing of photos: export it again"
        )
    warn_of_overflow(bundle)
    chosen = backends.create(replace(options, backend=backends.bundle_runner(options.backend)))
    return segmenter(known, bundle.stages, chosen, header.fingerprint, options)


def segmenter(
    known: catalog.Model,
    stages: Mapping[str, Stage],
    backend: Backend,
    weights: str,
    options: Options,
) -> Segmenter:
    """Return the engine of a model."""
    return Segmenter(
        name=known.name,
        config=known.config,
        stages=stages,
        backend=backend,
        fingerprint=weights,
        embedding_cache_bytes=options.embedding_cache_bytes,
        threads=options.threads,
    )


def check_wanted(
    bundle: Bundle, name: str | None, image_size: int | None, options: Options
) -> None:
    """Refuse a bundle that is not what the caller asked for.

    Raises:
        CheckpointError: it is of another family, model or input size.
        BackendError: it can't run on that backend or at that precision.
    """
    held, folder = bundle.header, bundle.folder
    if held.family != SAM2:
        raise CheckpointError(
            f"{folder} holds {held.model}, which segments nothing: load it without another name"
        )
    if name is not None and catalog.find(name).name != held.model:
        raise CheckpointError(f"{folder} holds {held.model}, but {name} was asked for")
    if image_size not in (None, held.image_size):
        raise CheckpointError(
            f"{folder} takes pictures of {held.image_size} pixels, not {image_size}: "
            f"export it with --image-size {image_size}"
        )
    check_runs(bundle, options.backend, options.precision)

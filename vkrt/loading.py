"""vkrt.load: from a name or a file to a model that runs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vkrt import backends, catalog
from vkrt.backends.base import Backend
from vkrt.bundle import Bundle, check_target, is_bundle, read_bundle
from vkrt.engines.sam2_image import Segmenter
from vkrt.errors import BackendError, CheckpointError, UnknownModelError
from vkrt.export.cache import find_bundle
from vkrt.export.int8.cpu import needs_reduced_range
from vkrt.export.model import (
    PRECISIONS,
    PREPROCESSING,
    export_pictures,
    export_weights,
)
from vkrt.loading_sd35 import Paths, bundled_generator, load_generator
from vkrt.manifest import SAM2, SD35, read_manifest
from vkrt.options import EMBEDDING_CACHE_BYTES, Options, default_backend
from vkrt.stage import Stage
from vkrt.weights.family import CUSTOM, find_sd35, holds_sd35
from vkrt.weights.fingerprint import fingerprint

__all__ = ["export_model", "load"]

# What the image engine runs; a bundle that lacks one is refused before anything runs.
STAGES = ("image_encoder", "mask_decoder", "mask_refiner")


def load(
    model: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    backend: str = "auto",
    device: str = "auto",
    precision: str | Mapping[str, str] = "auto",
    threads: int | None = None,
    image_size: int | None = None,
    embedding_cache_bytes: int = EMBEDDING_CACHE_BYTES,
    memory_limit: int | None = None,
    encoders: Mapping[str, str | os.PathLike[str]] | None = None,
    tokenizers: Paths | None = None,
    control_model: str | os.PathLike[str] | None = None,
) -> Any:
    """Load a model: a Segmenter of SAM 2, or a Generator of Stable Diffusion 3.5.

    Args:
        model: a catalog name ("sam2.1-tiny"), hub id or upstream config path; or the path of a
            checkpoint, whose model is then recognised from its tensors; or the folder of a bundle
            that `vkrt export` wrote, of either family, which needs no torch.
        checkpoint: an official .pt, a .safetensors file, a transformers folder or a bundle; None
            takes the packaged weights, or those that `vkrt pull` fetched.
        backend: "eager" runs PyTorch, "onnx" ONNX Runtime, "openvino" OpenVINO; for these two a
            checkpoint is exported once, into the cache folder, unless a bundle of it ships with
            vkrt. "auto" is "onnx" on a CPU where that can be, else "eager", or what
            $VKRT_BACKEND says.
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: "auto", "fp32", "bf16", "fp16" or "int8"; of a Generator also by stage, as
            "bf16,vae_decoder=fp32" or a mapping; in a bundle fp16 is that of the stored
            weights alone. "int8" always runs on ONNX Runtime, with the image encoder's products in
            integers as far as masks allow; its export takes minutes, and is kept in the cache.
        threads: CPU threads; None leaves the machine's default.
        image_size: side of the model's square input, a multiple of 32; None is the model's own.
        embedding_cache_bytes: bound of a Segmenter's embedding cache; 0 turns it off.
        memory_limit: bytes that a Generator's stages may use on its device; None is no limit.
        encoders: of a Generator whose checkpoint lacks them, the files of "clip_l", "clip_g", "t5"
            and "vae". Without T5, prompts are read by the two CLIPs alone.
        tokenizers: of a Generator: a folder that has them, or one for "clip_l" and "t5" each; None
            looks in the folder of the checkpoint.
        control_model: a ControlNet for a Generator, a file or a folder of diffusers.

    Raises:
        UnknownModelError: no such model.
        CheckpointError: the weights or the bundle are damaged or of another model.
        DownloadError: the weights are not here; says which file to fetch.
        BackendError: the backend, device or precision is not to be had here.
    """
    settings: dict[str, Any] = {"backend": backend, "device": device, "threads": threads}
    makes_pictures, sd35 = of_sd35(model, checkpoint)
    if makes_pictures:
        options = Options(**settings, memory_limit=memory_limit)
        source = Path(model) if sd35 is None and checkpoint is None else as_path(checkpoint)
        if source is not None and is_bundle(source):
            if encoders or control_model is not None:
                raise CheckpointError(
                    f"{source} is a bundle, which holds all its weights: export it again with these"
                )
            bundle = read_bundle(source)
            check_pictures(bundle, sd35, options, precision)
            warn_of_overflow(bundle)
            return bundled_generator(bundle, options, tokenizers)
        return load_generator(sd35, source, options, precision, encoders, tokenizers, control_model)
    if not isinstance(precision, str):
        raise BackendError('a model that segments has one precision: give one, such as "fp32"')
    options = Options(**settings, precision=precision, embedding_cache_bytes=embedding_cache_bytes)
    name, source = resolve(model, checkpoint)
    if name is not None:
        catalog.find(name, image_size)
    if source is not None and is_bundle(source):
        bundle = read_bundle(source)
        check_wanted(bundle, name, image_size, options)
        return from_bundle(bundle, options)
    if backend == "auto":
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


def of_sd35(
    model: str | os.PathLike[str], checkpoint: str | os.PathLike[str] | None
) -> tuple[bool, str | None]:
    """Tell whether the caller means Stable Diffusion 3.5, and by which catalog name, if by one."""
    name = find_sd35(os.fspath(model))
    if name is not None or checkpoint is not None:
        return name is not None, name
    if is_bundle(model):
        return read_manifest(Path(model)).header.family == SD35, None
    return holds_sd35(model), None


def as_path(path: str | os.PathLike[str] | None) -> Path | None:
    """Return a path as one."""
    return None if path is None else Path(path)


def resolve(
    model: str | os.PathLike[str], checkpoint: str | os.PathLike[str] | None
) -> tuple[str | None, Path | None]:
    """Return the name and the weights that the caller means; a path alone has no name."""
    if checkpoint is not None:
        return os.fspath(model), Path(checkpoint)
    try:
        catalog.find(os.fspath(model))
    except UnknownModelError:
        if Path(model).exists():
            return None, Path(model)
        raise
    return os.fspath(model), None


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


def warn_of_overflow(bundle: Bundle) -> None:
    """Say that an int8 bundle is from a machine whose CPU could do more than this one.

    Warns:
        RuntimeWarning: it is so.
    """
    if bundle.header.quantization.get("weight_bits") == 8 and needs_reduced_range():
        warnings.warn(
            f"{bundle.folder} has weights of 8 bits, with which products overflow on this CPU and "
            "results suffer: export it again here",
            RuntimeWarning,
            stacklevel=4,
        )


def check_pictures(
    bundle: Bundle, name: str | None, options: Options, precision: str | Mapping[str, str]
) -> None:
    """Refuse a bundle that does not make the pictures that the caller asked for.

    Raises:
        CheckpointError: it is of another family or model.
        BackendError: it can't run on that backend or at that precision.
    """
    held, folder = bundle.header, bundle.folder
    if held.family != SD35:
        raise CheckpointError(f"{folder} holds {held.model}, which makes no pictures")
    if name not in (None, CUSTOM, held.model):
        raise CheckpointError(f"{folder} holds {held.model}, but {name} was asked for")
    check_runs(bundle, options.backend, precision)


def check_runs(bundle: Bundle, backend: str, precision: str | Mapping[str, str]) -> None:
    """Refuse a bundle on a backend or at a precision that is not its own.

    Raises:
        BackendError: says what to take.
    """
    held, folder = bundle.header, bundle.folder
    if backend != "auto" and not backends.runs_bundles(backend):
        raise BackendError(
            f"{folder} is a bundle, which {backend} can't run; "
            'give its checkpoint, or backend="onnx"'
        )
    if precision not in ("auto", held.precision):
        raise BackendError(
            f"{folder} holds {held.precision} weights, not {precision}; "
            'take precision="auto" or export it again'
        )


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
    encoders: Mapping[str, str | os.PathLike[str]] | None = None,
    tokenizers: Paths | None = None,
    control_model: str | os.PathLike[str] | None = None,
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

    Raises:
        OutputError: the folder can't be made, or exists.
        BackendError: packages are missing, the bundle would not give what PyTorch gives, or int8
            is not faster here or loses too much.
        ImageError: the calibration folder has no photo, or one that can't be read.
        UnknownModelError, CheckpointError, DownloadError: as in load.
    """
    lacking = backends.needed_to_export()
    if lacking:
        raise BackendError(f"export needs {lacking}: run pip install 'vkrt[torch,cpu]'")
    if precision not in PRECISIONS:
        raise BackendError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if precision != "int8" and (calibration is not None or allow_loss):
        raise BackendError("calibration and allowed loss are of int8: add --precision int8")
    check_target(Path(out), force)
    makes_pictures, sd35 = of_sd35(model, checkpoint)
    if makes_pictures:
        if image_size is not None or photos_only or calibration is not None:
            raise BackendError(
                f"{model} makes pictures of any size, which needs no photos: leave out image_size, "
                "photos_only and calibration"
            )
        source = Path(model) if sd35 is None and checkpoint is None else as_path(checkpoint)
        export_pictures(
            sd35,
            source,
            Path(out),
            precision,
            encoders,
            tokenizers,
            control_model,
            force=force,
            allow_loss=allow_loss,
        )
        return read_bundle(out)
    name, source = resolve(model, checkpoint)
    if name is not None:
        catalog.find(name, image_size)
    export_weights(
        name,
        source,
        Path(out),
        precision,
        image_size,
        force=force,
        photos_only=photos_only,
        calibration=None if calibration is None else Path(calibration),
        allow_loss=allow_loss,
    )
    return read_bundle(out)

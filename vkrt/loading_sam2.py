"""From the weights of SAM 2, or a bundle, to an engine that segments."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from vkrt import backends, catalog
from vkrt.backends.base import Backend
from vkrt.bundle import Bundle, is_bundle, read_bundle
from vkrt.engines.sam2_image import Segmenter
from vkrt.errors import BackendError, CheckpointError, OutputError
from vkrt.export.cache import Exportable
from vkrt.export.model import PREPROCESSING
from vkrt.fitness import check_runs, warn_of_overflow
from vkrt.manifest import SAM2
from vkrt.meant import Meant
from vkrt.options import Options, default_backend, default_export, exports_forbidden
from vkrt.stage import Stage
from vkrt.weights.fingerprint import fingerprint

__all__ = ["advice", "load_segmenter", "packaged_bundle"]

# What the image engine runs; a bundle that lacks one is refused before anything runs.
STAGES = ("image_encoder", "mask_decoder", "mask_refiner")
# A model that is in use this long after it was loaded will be for longer, which pays for an export.
BEHIND_AFTER_SECONDS = 60.0


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
    if not backends.may_use_bundle(options):
        return from_weights(name, source, image_size, options)
    wanted = Exportable.of(name, source, image_size, options)
    found = wanted.find() or export_now(wanted, options)
    if found is not None:
        return from_bundle(found, options)
    loaded = from_weights(name, source, image_size, options)
    if asked_export(options) in ("auto", "behind"):
        export_behind(loaded, wanted, options)
    return loaded


def asked_export(options: Options) -> str:
    """Return which way of exporting is asked for, by the options or the environment."""
    return default_export() if options.export == "auto" else options.export


def export_now(wanted: Exportable, options: Options) -> Bundle | None:
    """Return a bundle of a checkpoint if it has to be exported before the model is there.

    Raises:
        BackendError, OutputError: it can't be, and nothing else can run the checkpoint.
        CheckpointError: as in vkrt.load.

    Warns:
        RuntimeWarning: it can't be, but PyTorch runs the checkpoint.
    """
    if backends.runs_bundles(options.backend) or not can_fall_back(options):
        return wanted.export(options.report)
    if asked_export(options) != "first" or not backends.can_export() or exports_forbidden():
        return None
    try:
        return wanted.export(options.report)
    except (BackendError, OutputError) as error:
        refusal = wanted.refusal()
        # Whoever asks for it in this very call hears of it each time.
        if options.export == "first" or refusal is None or not refusal.told:
            said = f"eager PyTorch runs {wanted.weights}: {error}"
            warnings.warn(said, RuntimeWarning, stacklevel=4)
        wanted.note_told()
        return None


def export_behind(loaded: Segmenter, wanted: Exportable, options: Options) -> None:
    """Let a model that PyTorch runs be exported beside its calls, and go over to the bundle."""
    if not backends.can_export() or exports_forbidden() or wanted.refusal() is not None:
        return
    # Who has a bundle does not wait for this to be imported.
    from vkrt.export.behind import ExportBehind, can_run_behind

    if not can_run_behind():
        return
    patient = asked_export(options) == "auto"
    # It must not keep a model that nobody else does.
    ready = partial(go_over, weakref.ref(loaded), options)
    behind = ExportBehind(wanted, ready, BEHIND_AFTER_SECONDS if patient else 0.0)
    weakref.finalize(loaded, behind.stop)
    loaded.runtimes.attach(behind)
    behind.touch()


def go_over(loaded: Callable[[], Segmenter | None], options: Options, bundle: Bundle) -> None:
    """Let a model run a bundle from its next call on.

    Raises:
        CheckpointError, BackendError: as from_bundle; the model goes on as it is.
    """
    segmenter = loaded()
    if segmenter is not None:
        backend = runner_of(bundle, options)
        segmenter.switch_to(bundle.stages, backend, bundle.header.fingerprint)


def advice(meant: Meant, image_size: int | None, options: Options) -> tuple[Path, str] | None:
    """Return a checkpoint that PyTorch runs but a bundle would run faster, and how to get it.

    Args:
        meant, image_size, options: as load_segmenter takes them.
    """
    if options.backend == "auto":
        options = replace(options, backend=default_backend())
    settled = meant.has_bundle or asked_export(options) == "never" or exports_forbidden()
    if settled or not backends.may_use_bundle(options) or not backends.can_export():
        return None
    name = meant.name if meant.source is None else None
    if name is not None and packaged_bundle(name, image_size, options) is not None:
        return None
    wanted = Exportable.of(meant.name, meant.source, image_size, options)
    refusal = wanted.refusal()
    if refusal is not None:
        return wanted.weights, f"PyTorch runs {wanted.weights}: {refusal.reason}"
    if wanted.exists():
        return None
    return wanted.weights, (
        f"PyTorch runs {wanted.weights}; --export, once and for some minutes, makes later starts "
        "and calls faster (`vkrt export` writes a bundle that runs without PyTorch, too)"
    )


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
    tell(options, "starting PyTorch")
    chosen = backends.create(replace(options, backend=backend))
    # Behind `create`, so that a missing torch is told in one line and not as an ImportError.
    from vkrt.models.sam2.stage_set import all_stages
    from vkrt.weights.sam2 import load_sam2

    tell(options, f"reading {source or name}")
    known, module = load_sam2(source, name, image_size, options.cache)
    weights = partial(fingerprint, module)
    return segmenter(known, all_stages(module), chosen, weights, options)


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
    tell(options, f"opening {bundle.folder.name}")
    chosen = runner_of(bundle, options)
    return segmenter(known, bundle.stages, chosen, header.fingerprint, options)


def runner_of(bundle: Bundle, options: Options) -> Backend:
    """Return the backend that runs a bundle, which is checked first; as from_bundle."""
    for name in STAGES:
        bundle.stages[name]
    if dict(bundle.header.preprocessing) != PREPROCESSING:
        raise CheckpointError(
            f"{bundle.folder} was exported for other preprocessing of photos: export it again"
        )
    warn_of_overflow(bundle)
    return backends.create(replace(options, backend=backends.bundle_runner(options.backend)))


def tell(options: Options, what: str) -> None:
    """Report what is being done, to whoever wants to know."""
    if options.report is not None:
        options.report(what, 0.0)


def segmenter(
    known: catalog.Model,
    stages: Mapping[str, Stage],
    backend: Backend,
    weights: str | Callable[[], str],
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

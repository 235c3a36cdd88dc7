"""Bundles that are exported once into the cache folder and then found there; imports no torch."""

from __future__ import annotations

import hashlib
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

from vkrt import __version__, backends, catalog, export, kernels, models
from vkrt.bundle import Bundle, is_bundle, read_bundle
from vkrt.errors import BackendError, CheckpointError, OutputError
from vkrt.export.int8.cpu import needs_reduced_range
from vkrt.export.model import PRECISIONS, export_weights
from vkrt.export.prune import lock_of, mark_used, prune
from vkrt.manifest import digest_of
from vkrt.options import Options
from vkrt.weights.folder import find_parts
from vkrt.weights.hub import pull

__all__ = ["bundle_key", "cached_bundle", "find_bundle"]


def find_bundle(
    name: str | None,
    source: Path | None,
    image_size: int | None,
    options: Options,
    required: bool = False,
) -> Bundle | None:
    """Return the bundle of a checkpoint, exported now if it is not in the cache.

    Args:
        name, source: the model's name and weights; one of them may be None, as in vkrt.load.
        image_size: side of the input in pixels; None is the model's own.
        options: the precision of the weights and the cache folder.
        required: raise rather than return None.

    Returns:
        None where none is cached and none can be exported here.

    Raises:
        BackendError, OutputError: why there is none, if one is required.
        CheckpointError, DownloadError, UnknownModelError: as in vkrt.load.
    """
    weights = source or weights_of(name, options.cache)
    precision = options.precision if options.precision in PRECISIONS else "fp32"
    key = bundle_key(name, image_size, precision, find_parts(weights).files)

    def make(folder: Path) -> None:
        export_weights(name, weights, folder, precision, image_size, say_once)

    try:
        found = cached_bundle(
            options.cache / "bundles" / key, make if backends.can_export() else None
        )
    except (BackendError, OutputError) as error:
        if required:
            raise
        warnings.warn(f"eager PyTorch runs {weights}: {error}", RuntimeWarning, stacklevel=3)
        return None
    if found is None and required:
        raise BackendError(
            f"{weights} was not exported yet, which needs {backends.needed_to_export()}: "
            "run pip install 'vkrt[torch,cpu]', or give a bundle"
        )
    return found


def weights_of(name: str | None, cache: Path) -> Path:
    """Return the weights of a model that are in the package or were pulled."""
    assert name is not None, "without a name there is a checkpoint"
    return pull(catalog.find(name), cache, offline=True)


def say_once(name: str) -> None:
    """Tell that this load takes longer, and why."""
    print(f"vkrt: exporting {name} as a bundle, once; later loads find it", file=sys.stderr)


def bundle_key(
    name: str | None, image_size: int | None, precision: str, weights: Iterable[Path]
) -> str:
    """Return the name of the cache folder of a bundle, by all that decides what is in it.

    Args:
        name: the model by any of its names; None where the weights tell.
        image_size: side of the input in pixels; None is the model's own.
        precision: "fp32", "fp16" or "int8".
        weights: the checkpoint's files; their content counts.

    Raises:
        CheckpointError: a file can't be read.
    """
    model, size = name or "any", image_size
    if name is not None:
        known = catalog.find(name, image_size)
        model, size = known.name, known.config.image_size
    digest = hashlib.sha256(f"{__version__} {source_digest()}".encode())
    if precision == "int8":
        # Machines may share a cache, and not every CPU takes all 8 bits.
        digest.update(f" reduced range {needs_reduced_range()}".encode())
    for file in weights:
        try:
            digest.update(digest_of(file).encode())
        except OSError as error:
            raise CheckpointError(f"{file} can't be read: {error.strerror}") from None
    return f"{model}-{size or 'own'}-{precision}-{digest.hexdigest()[:32]}"


def source_digest() -> str:
    """Return a digest of the sources that make a bundle: a version in the works changes too."""
    digest = hashlib.sha256()
    for package in (models, kernels, export):
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def cached_bundle(folder: Path, make: Callable[[Path], None] | None) -> Bundle | None:
    """Return the bundle of a cache folder, made first if it is not there or damaged.

    Several processes may ask at once: one makes it, the others wait and take that.

    Args:
        folder: where it is, or is to be.
        make: writes a bundle to a path, replacing one that is there; None only looks.

    Raises:
        OutputError: the cache can't be written.
    """
    found = intact(folder)
    if found is not None or make is None:
        return found
    # It comes with torch, which `make` needs anyway.
    from filelock import FileLock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(lock_of(folder))
        lock.acquire()
    except OSError as error:
        raise OutputError(
            f"{folder.parent} can't be written ({error.strerror}); set VKRT_CACHE to another folder"
        ) from error
    try:
        found = intact(folder)
        if found is not None:
            return found
        if folder.exists() and not is_bundle(folder):
            shutil.rmtree(folder)
        make(folder)
    finally:
        lock.release()
    mark_used(folder)
    prune(folder)
    return read_bundle(folder)


def intact(folder: Path) -> Bundle | None:
    """Return the bundle of a folder, None where there is none or it is damaged."""
    if not is_bundle(folder):
        return None
    mark_used(folder)
    try:
        return read_bundle(folder)
    except CheckpointError:
        return None

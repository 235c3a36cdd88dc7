"""Bundles that are exported once into the cache folder and then found there; imports no torch."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from vkrt import __version__, backends, catalog, export, kernels, models
from vkrt.bundle import Bundle, is_bundle, read_bundle
from vkrt.errors import BackendError, CheckpointError, OutputError
from vkrt.export.file_records import recall, remember, remembered_digest
from vkrt.export.int8.cpu import needs_reduced_range
from vkrt.export.model import PRECISIONS, export_weights
from vkrt.export.progress import Report, ignore
from vkrt.export.prune import lock_of, mark_used, prune
from vkrt.export.refusals import (
    SUFFIX,
    Refusal,
    forget_refusal,
    read_refusal,
    tell,
    versions,
    write_refusal,
)
from vkrt.manifest import digest_of
from vkrt.options import Options, check_export_allowed
from vkrt.weights.folder import find_parts
from vkrt.weights.hub import pull

__all__ = ["Exportable", "bundle_key", "cached_bundle"]


@dataclass(frozen=True)
class Exportable:
    """A checkpoint that is, or can become, a bundle in the cache.

    Attributes:
        name: of the model by any of its names; None where the weights tell.
        weights: file or folder of its weights.
        image_size: side of the input in pixels; None is the model's own.
        precision: of the bundle.
        cache: the cache folder.
    """

    name: str | None
    weights: Path
    image_size: int | None
    precision: str
    cache: Path

    @classmethod
    def of(
        cls, name: str | None, source: Path | None, image_size: int | None, options: Options
    ) -> Exportable:
        """Return what the arguments of vkrt.load name.

        Raises:
            DownloadError, UnknownModelError: as in vkrt.load.
        """
        weights = source or weights_of(name, options.cache)
        name = name or recognised(weights, options.cache)
        precision = options.precision if options.precision in PRECISIONS else "fp32"
        return cls(name, weights, image_size, precision, options.cache)

    @cached_property
    def folder(self) -> Path:
        """Return where the bundle is or would be; reads the weights if they are new or changed.

        Raises:
            CheckpointError: they can't be read.
        """
        files = find_parts(self.weights).files
        digest = partial(remembered_digest, self.cache)
        key = bundle_key(self.name, self.image_size, self.precision, files, digest)
        return self.cache / "bundles" / key

    def find(self) -> Bundle | None:
        """Return the bundle if it is in the cache and whole.

        Raises:
            CheckpointError: the weights can't be read.
        """
        # A cache without any bundle of this model is no reason to read all of its weights.
        return intact(self.folder) if self._is_known("") else None

    def exists(self) -> bool:
        """Tell whether the cache has the bundle; it is not verified."""
        return self._is_known("") and is_bundle(self.folder)

    def refusal(self) -> Refusal | None:
        """Return why an earlier export failed, if another would fail in the same way."""
        return read_refusal(self.folder) if self._is_known(SUFFIX) else None

    def _is_known(self, ending: str) -> bool:
        """Tell whether the cache holds something of this model, if maybe of other weights."""
        start = key_start(self.name, self.image_size, self.precision)
        with suppress(OSError):
            names = os.listdir(self.cache / "bundles")
            return any(name.startswith(start) and name.endswith(ending) for name in names)
        return False

    def export(self, report: Report | None = None) -> Bundle:
        """Return the bundle, exported now if it is not in the cache.

        Args:
            report: is called with what is being done; None says in one line that it is done.

        Raises:
            BackendError: exports are forbidden, packages are missing, or the export failed, maybe
                at an earlier try.
            OutputError: the cache can't be written.
            CheckpointError, UnknownModelError: as in vkrt.load.
        """
        check_export_allowed(self.weights)
        lacking = backends.needed_to_export()
        if lacking:
            raise BackendError(
                f"{self.weights} was not exported yet, which needs {lacking}: "
                "run pip install 'vkrt[torch,cpu]', or give a bundle"
            )
        started = say_once if report is None else say_nothing
        try:
            bundle = cached_bundle(
                self.folder, lambda folder: self._make(folder, started, report or ignore), report
            )
        except (BackendError, OutputError, MemoryError) as error:
            self.refuse(str(error) or "out of memory", lasting=isinstance(error, BackendError))
            raise
        assert bundle is not None, "there is something to make it"
        forget_refusal(self.folder)
        return bundle

    def _make(self, folder: Path, started: Callable[[str], None], report: Report) -> None:
        # Another process may have tried while this one waited for it.
        refusal = self.refusal()
        if refusal is not None and refusal.lasting:
            raise BackendError(
                f"{refusal.reason} (an earlier try; `vkrt cache clear --refusals` allows another)"
            )
        export_weights(
            self.name,
            self.weights,
            folder,
            self.precision,
            self.image_size,
            started,
            report=report,
        )

    def note_told(self) -> bool:
        """Remember that a person is told of a refusal now; return whether nobody was before."""
        refusal = self.refusal()
        return refusal is not None and tell(self.folder, refusal)

    def refuse(self, reason: str, lasting: bool) -> None:
        """Remember that the export failed, unless that is known."""
        known = self.refusal()
        if known is None or (lasting and not known.lasting):
            model = self.name or self.weights.name
            where = os.path.abspath(self.weights)
            write_refusal(self.folder, Refusal(model, where, reason, versions(), lasting))


def recognised(weights: Path, cache: Path) -> str | None:
    """Return the model of weights that come without a name, so that one bundle serves both ways.

    Returns:
        None where torch would be needed to tell and is not there, and where it is no known model.
    """
    with suppress(CheckpointError):
        file = find_parts(weights).files[0]
        known = recall(cache, file).get("model")
        if known in catalog.names():
            return str(known)
        if not backends.can_export():
            return None
        from vkrt.weights.checkpoint import read_shapes
        from vkrt.weights.sam2 import recognise

        name = recognise(read_shapes(weights)).name
        remember(cache, file, model=name)
        return name
    return None


def weights_of(name: str | None, cache: Path) -> Path:
    """Return the weights of a model that are in the package or were pulled."""
    assert name is not None, "without a name there is a checkpoint"
    return pull(catalog.find(name), cache, offline=True)


def say_once(name: str) -> None:
    """Tell that this load takes longer, and why."""
    print(f"vkrt: exporting {name} as a bundle, once; later loads find it", file=sys.stderr)


def say_nothing(name: str) -> None:
    """Leave it to the report."""


def bundle_key(
    name: str | None,
    image_size: int | None,
    precision: str,
    weights: Iterable[Path],
    digest_file: Callable[[Path], str] = digest_of,
) -> str:
    """Return the name of the cache folder of a bundle, by all that decides what is in it.

    Args:
        name: the model by any of its names; None where the weights tell.
        image_size: side of the input in pixels; None is the model's own.
        precision: "fp32", "fp16" or "int8".
        weights: the checkpoint's files; their content counts.
        digest_file: returns the digest of a file.

    Raises:
        CheckpointError: a file can't be read.
    """
    digest = hashlib.sha256(f"{__version__} {source_digest()}".encode())
    if precision == "int8":
        # Machines may share a cache, and not every CPU takes all 8 bits.
        digest.update(f" reduced range {needs_reduced_range()}".encode())
    for file in weights:
        try:
            digest.update(digest_file(file).encode())
        except OSError as error:
            raise CheckpointError(f"{file} can't be read: {error.strerror}") from None
    return f"{key_start(name, image_size, precision)}{digest.hexdigest()[:32]}"


def key_start(name: str | None, image_size: int | None, precision: str) -> str:
    """Return what the keys of a model start with, whatever its weights."""
    model, size = name or "any", image_size
    if name is not None:
        known = catalog.find(name, image_size)
        model, size = known.name, known.config.image_size
    return f"{model}-{size or 'own'}-{precision}-"


def source_digest() -> str:
    """Return a digest of the sources that make a bundle: a version in the works changes too."""
    digest = hashlib.sha256()
    for package in (models, kernels, export):
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def cached_bundle(
    folder: Path, make: Callable[[Path], None] | None, report: Report | None = None
) -> Bundle | None:
    """Return the bundle of a cache folder, made first if it is not there or damaged.

    Several processes may ask at once: one makes it, the others wait and take that.

    Args:
        folder: where it is, or is to be.
        make: writes a bundle to a path, replacing one that is there; None only looks.
        report: is told when another process makes it.

    Raises:
        OutputError: the cache can't be written.
    """
    found = intact(folder)
    if found is not None or make is None:
        return found
    # It comes with torch, which `make` needs anyway.
    from filelock import FileLock, Timeout

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(lock_of(folder))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            (report or ignore)("waiting for another process that exports it", 0.0)
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

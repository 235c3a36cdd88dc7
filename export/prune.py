"""Bundles that newer ones replaced leave the cache, unless somebody uses them; imports no torch."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from vkrt.bundle import is_bundle
from vkrt.errors import CheckpointError
from vkrt.manifest import MANIFEST, read_json
from vkrt.temporary import discard

try:
    import fcntl
except ImportError:
    # Windows: nobody can tell there who uses a bundle, so none is deleted.
    fcntl = None  # type: ignore[assignment]

__all__ = ["KEPT", "lock_of", "mark_used", "prune"]

# Of the same weights: the newest, and one more for who goes back and forth between two versions.
KEPT = 2
# What tells bundles of the same weights; every schema has it.
IDENTITY = ("model", "image_size", "precision", "fingerprint")
# The open manifests of the bundles that this process uses, each with its shared lock.
_used: dict[tuple[int, int], int] = {}


def lock_of(folder: Path) -> Path:
    """Return the lock file that whoever makes or deletes a bundle of the cache holds."""
    return folder.with_name(f"{folder.name}.lock")


def mark_used(folder: Path) -> None:
    """Keep a bundle from being pruned until this process ends, and note that it was used now.

    Stages are opened when something needs them, so a bundle in use must stay whole.
    """
    if fcntl is None:
        return
    # A cache that can't be written or locked is not pruned either.
    with suppress(OSError):
        descriptor = os.open(folder / MANIFEST, os.O_RDONLY)
        status = os.fstat(descriptor)
        known = _used.setdefault((status.st_dev, status.st_ino), descriptor)
        if known != descriptor:
            os.close(descriptor)
        fcntl.flock(known, fcntl.LOCK_SH)
        os.utime(folder / MANIFEST)


def prune(newest: Path) -> None:
    """Delete the older bundles of a bundle's weights at its input size and precision.

    Args:
        newest: in the cache; it stays, and so do the `KEPT` - 1 others that were used last and
            any that some process uses or makes.
    """
    if fcntl is None:
        return
    with suppress(OSError):
        older = [folder for folder in newest.parent.iterdir() if replaces(newest, folder)]
        older.sort(key=lambda folder: (folder / MANIFEST).stat().st_mtime_ns, reverse=True)
        for folder in older[KEPT - 1 :]:
            delete_unused(folder)


def replaces(newest: Path, folder: Path) -> bool:
    """Tell whether a folder is another bundle of the same weights, size and precision."""
    if folder == newest or not is_bundle(folder):
        return False
    try:
        one, other = (read_json(path / MANIFEST) for path in (newest, folder))
    except CheckpointError:
        return False
    return all(name in one and one[name] == other.get(name) for name in IDENTITY)


def delete_unused(folder: Path) -> None:
    """Delete a bundle, unless somebody makes it, uses it or has more rights to it than we."""
    # It comes with torch, without which nothing is exported and so nothing pruned.
    from filelock import FileLock

    with (
        suppress(OSError),
        FileLock(lock_of(folder), timeout=0),
        (folder / MANIFEST).open("rb+") as manifest,
    ):
        fcntl.flock(manifest, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Out of sight at once: whoever looks from now on finds nothing rather than half of it.
        discard(folder)

"""What the cache folder holds, and how it leaves again; imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vkrt.bundle import is_bundle
from vkrt.errors import CheckpointError
from vkrt.export.file_records import RECORDS
from vkrt.export.prune import lock_of
from vkrt.export.refusals import SUFFIX, parse
from vkrt.manifest import MANIFEST, read_json
from vkrt.temporary import discard, sweep

try:
    import fcntl
except ImportError:
    # Windows, which itself refuses to rename what is open.
    fcntl = None  # type: ignore[assignment]

__all__ = ["KINDS", "Entry", "delete", "list_entries"]

# Bundles, weights that were fetched or put there, failed exports, what is being written, and the
# notes on files: digests and what was told.
KINDS = ("bundle", "download", "refusal", "unfinished", "notes")
HUB_FOLDER = "models--"


@dataclass(frozen=True)
class Entry:
    """Hold one thing in the cache.

    Attributes:
        kind: one of KINDS.
        name: of its file or folder, which tells it from the others.
        model: the model it is of, "" where that can't be told.
        path: where it is.
        bytes: what it takes.
        used: when it was used last, in seconds since 1970; 0 where that can't be told.
        note: what else is to be known, such as why an export failed.
    """

    kind: str
    name: str
    model: str
    path: Path
    bytes: int
    used: float
    note: str = ""


def list_entries(cache: Path) -> list[Entry]:
    """Return what a cache folder holds, each kind with what was used last first.

    What killed processes left is removed.
    """
    sweep(cache / "bundles")
    found = [*bundles_in(cache / "bundles"), *downloads_in(cache), *notes_in(cache / RECORDS)]
    return sorted(found, key=lambda entry: (KINDS.index(entry.kind), -entry.used, entry.name))


def children(folder: Path) -> list[Path]:
    """Return what is in a folder, nothing where it is none."""
    with suppress(OSError):
        return sorted(folder.iterdir())
    return []


def bundles_in(folder: Path) -> Iterator[Entry]:
    """Give bundles, refusals and what is being written."""
    for path in children(folder):
        size, used = size_of(path), changed(path)
        if path.name.startswith(".") and path.suffix in (".part", ".old"):
            yield Entry("unfinished", path.name, "", path, size, used)
        elif path.name.endswith(SUFFIX):
            refusal = parse(path)
            model, note = (refusal.model, refusal.reason) if refusal else ("", "unreadable")
            yield Entry("refusal", path.name, model, path, size, used, note)
        elif is_bundle(path):
            model, precision = described(path)
            used = changed(path / MANIFEST)
            yield Entry("bundle", path.name, model, path, size, used, precision)


def described(folder: Path) -> tuple[str, str]:
    """Return the model of a bundle and its precision with the input size."""
    with suppress(CheckpointError):
        content = read_json(folder / MANIFEST)
        size, precision = content.get("image_size"), content.get("precision")
        return str(content.get("model", ""))[:80], f"{precision!s:.20} at {size!s:.20}"
    return "", "damaged"


def downloads_in(cache: Path) -> Iterator[Entry]:
    """Give weights that were fetched, and those that somebody put beside them by hand."""
    for path in children(cache / "hub"):
        if path.name.startswith(HUB_FOLDER):
            model = path.name.removeprefix(HUB_FOLDER).replace("--", "/")
            yield Entry("download", path.name, model, path, size_of(path), last_read(path))
    for path in children(cache / "checkpoints"):
        yield Entry("download", path.name, path.stem, path, size_of(path), last_read(path))


def notes_in(folder: Path) -> Iterator[Entry]:
    """Give the records of files as one entry."""
    if folder.is_dir():
        yield Entry("notes", RECORDS, "", folder, size_of(folder), changed(folder))


def size_of(path: Path) -> int:
    """Return the bytes of a file or of all files in a folder; what links lead to counts once."""
    inside = (Path(top) / name for top, _, names in os.walk(path) for name in names)
    return sum(size_of_file(file) for file in ([path] if path.is_file() else inside))


def size_of_file(file: Path) -> int:
    """Return the bytes of a file; 0 where that can't be told."""
    with suppress(OSError):
        return file.lstat().st_size
    return 0


def changed(path: Path) -> float:
    """Return when something was written last; 0 where that can't be told."""
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def last_read(path: Path) -> float:
    """Return when a file, or any in a folder, was read or written last, as far as that is kept."""
    inside = (Path(top) / name for top, _, names in os.walk(path) for name in names)
    times = [0.0]
    for file in [path] if path.is_file() else inside:
        with suppress(OSError):
            status = file.stat()
            times.append(max(status.st_atime, status.st_mtime))
    return max(times)


def delete(entry: Entry) -> str:
    """Delete an entry; return "" or why it stays: somebody makes, fetches or uses it."""
    if entry.kind == "unfinished":
        return "in use"
    try:
        with ExitStack() as held:
            for lock in locks_of(entry):
                held.enter_context(locked(lock))
            if entry.path.is_dir():
                # Out of sight at once: whoever looks finds nothing rather than half of it.
                discard(entry.path)
            else:
                entry.path.unlink()
    except FileNotFoundError:
        return ""
    except BlockingIOError:
        return "in use"
    except OSError as error:
        return error.strerror or str(error)
    return ""


def locks_of(entry: Entry) -> list[Path]:
    """Return the files that whoever makes or uses an entry holds a lock of."""
    if entry.kind == "bundle":
        return [lock_of(entry.path), entry.path / MANIFEST]
    if entry.kind == "refusal":
        return [lock_of(entry.path.with_name(entry.name.removesuffix(SUFFIX)))]
    if entry.path.name.startswith(HUB_FOLDER):
        return children(entry.path.parent / ".locks" / entry.name)
    return []


@contextmanager
def locked(file: Path) -> Iterator[IO[bytes] | None]:
    """Hold the lock of a file.

    Raises:
        BlockingIOError: somebody else holds it.
        OSError: it can't be locked.
    """
    if fcntl is None:
        yield None
        return
    try:
        opened = file.open("rb+")
    except FileNotFoundError:
        # Nobody ever needed it.
        yield None
        return
    with opened:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield opened

"""Temporary files and folders beside an output, and claims on the place where it is to be.

Each is locked for as long as its owner lives, however that ends, so that whatever a killed process
left behind can be told from what is in use, and the next run removes it. Where the file system or
the operating system has no such locks, nothing is removed and no claim is refused.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from vkrt.errors import OutputError, VkrtError

try:
    import fcntl
except ImportError:
    # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "TemporaryFile",
    "TemporaryFolder",
    "claim",
    "discard",
    "explained",
    "keep_beside",
    "replace_folder",
    "sweep",
]

PART = re.compile(r"\.vkrt-[0-9a-f]{12}\.(part|lock)")
OLDER = re.compile(r"\.(?P<name>.+)\.vkrt-[0-9a-f]{12}\.old")
REMEDIES = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "free some of your quota or choose another folder",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that is not mounted read-only",
    errno.ENAMETOOLONG: "choose a shorter name",
}
# A sweeper may take a name away between its creation and its lock.
ATTEMPTS = 10


class Claim(NamedTuple):
    """Hold the thread that claimed a place, and the locked file that stands for that."""

    thread: int
    path: Path
    descriptor: int


# The claims of this process, and the folders that it swept.
_claims: dict[Path, Claim] = {}
_swept: set[Path] = set()
_guard = threading.Lock()


class TemporaryFile:
    """Hold a new file that is open for writing, with the mode that the umask gives.

    Attributes:
        path: where it is.
        descriptor: its open file descriptor; whoever closes it gives up the lock.

    Raises:
        OSError: it can't be created.
    """

    def __init__(self, folder: Path) -> None:
        sweep(folder)
        # tempfile would make it readable to its owner only, and the umask can't be read safely.
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        for _ in range(ATTEMPTS):
            self.path = folder / part_name()
            self.descriptor = os.open(self.path, flags, 0o666)
            if lock(self.descriptor, self.path):
                return
            os.close(self.descriptor)
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(folder))

    def remove(self) -> None:
        """Delete the file if it is still there."""
        with contextlib.suppress(OSError):
            self.path.unlink()


class TemporaryFolder:
    """Hold a new folder.

    Attributes:
        path: where it is.

    Raises:
        OSError: it can't be created.
    """

    def __init__(self, parent: Path) -> None:
        sweep(parent)
        for _ in range(ATTEMPTS):
            self.path = parent / part_name()
            self.path.mkdir()
            self._descriptor = open_folder(self.path)
            if self._descriptor is None or lock(self._descriptor, self.path):
                return
            self._close()
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(parent))

    def remove(self) -> None:
        """Delete the folder if it still has its name, and give up the lock."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def part_name() -> str:
    """Return a new name, which no listing of the folder shows."""
    return f".vkrt-{secrets.token_hex(6)}.part"


def open_folder(path: Path) -> int | None:
    """Return a descriptor of a folder to lock; None where there is no such thing."""
    with contextlib.suppress(OSError):
        return None if fcntl is None else os.open(path, os.O_RDONLY)
    return None


def lock(descriptor: int, path: Path) -> bool:
    """Lock what is open; False if somebody else has it, or took its name away meanwhile."""
    return locks(descriptor) is not False and still_named(descriptor, path)


def locks(descriptor: int) -> bool | None:
    """Tell whether the lock of a file was free and is now held; None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def still_named(descriptor: int, path: Path) -> bool:
    """Tell whether an open file or folder has that path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def sweep(folder: Path) -> None:
    """Remove what killed processes left in a folder; a process looks once at each folder.

    A bundle that was being replaced and has no successor gets its name back.
    """
    if fcntl is None or folder in _swept:
        return
    _swept.add(folder)
    with contextlib.suppress(OSError):
        names = [entry.name for entry in os.scandir(folder) if entry.name.startswith(".")]
        for name in names:
            older = OLDER.fullmatch(name)
            if PART.fullmatch(name) or older:
                clear(folder / name, None if older is None else folder / older["name"])


def clear(path: Path, target: Path | None) -> None:
    """Remove a leftover that nobody holds, or put it back where its target is missing."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            if locks(descriptor) is not True or not still_named(descriptor, path):
                return
            if target is not None and not os.path.lexists(target):
                path.rename(target)
            elif path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        finally:
            os.close(descriptor)


@contextmanager
def claim(target: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other processes and threads from making the same output while the block runs.

    The same thread may claim a place that it has already.

    Args:
        target: the file or folder to make; its claim lies beside it, or in it where it is a folder
            whose own folder can't be written.

    Raises:
        OutputError: another one is making it.
        OSError: no claim can be written there.
    """
    real = Path(os.path.realpath(target))
    with _guard:
        held = _claims.get(real)
        if held is not None and held.thread != threading.get_ident():
            raise taken(target)
        if held is None:
            _claims[real] = Claim(threading.get_ident(), *claim_file(real, target))
    try:
        yield
    finally:
        if held is None:
            release(real)


def claim_file(real: Path, target: str | os.PathLike[str]) -> tuple[Path, int]:
    """Return the locked file that stands for a claim, and its descriptor."""
    inside = real.is_dir() and not os.access(real.parent, os.W_OK)
    name = hashlib.sha256(os.fsencode(real.name)).hexdigest()[:12]
    path = (real if inside else real.parent) / f".vkrt-{name}.lock"
    for _ in range(ATTEMPTS):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if locks(descriptor) is False:
            os.close(descriptor)
            raise taken(target)
        if still_named(descriptor, path):
            return path, descriptor
        os.close(descriptor)
    raise taken(target)


def release(real: Path) -> None:
    """Give up a claim."""
    with _guard:
        claimed = _claims.pop(real)
        with contextlib.suppress(OSError):
            claimed.path.unlink()
        os.close(claimed.descriptor)


def taken(target: str | os.PathLike[str]) -> OutputError:
    """Return the error for a place that another one has claimed."""
    return OutputError(
        f"another vkrt is writing {os.fspath(target)} now; wait until it is done, or choose "
        "another place"
    )


def replace_folder(part: Path, target: Path) -> None:
    """Give a finished folder its name, in place of a folder that is there.

    Raises:
        OSError: it can't be; what was there is there again.
    """
    if not os.path.lexists(target):
        os.rename(part, target)
        return
    older = target.with_name(f".{target.name}.vkrt-{secrets.token_hex(6)}.old")
    os.rename(target, older)
    try:
        os.rename(part, target)
    except OSError:
        os.rename(older, target)
        raise
    shutil.rmtree(older, ignore_errors=True)


def discard(folder: Path) -> None:
    """Delete a folder, whose name is free at once.

    Raises:
        OSError: it can't be renamed.
    """
    hidden = folder.with_name(part_name())
    os.rename(folder, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def keep_beside(part: Path, target: Path) -> Path:
    """Give a finished folder whose place was taken meanwhile the next free name, and return that.

    Raises:
        OSError: it can't be renamed.
    """
    number = 2
    while True:
        free = target.with_name(f"{target.name}-{number}")
        if not os.path.lexists(free):
            os.rename(part, free)
            return free
        number += 1


@contextmanager
def explained(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the system's errors into one line that says what to do."""
    try:
        yield
    except VkrtError:
        raise
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "choose another place")
        reason = error.strerror or str(error)
        raise OutputError(f"{path} can't be written ({reason}); {remedy}") from error

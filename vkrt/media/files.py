"""Output files: whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from vkrt.errors import OutputError, VkrtError

__all__ = ["check_writable", "write_atomically"]

REMEDIES = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "free some of your quota or choose another folder",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that is not mounted read-only",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def write_atomically(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Call `write` on a temporary file in the same folder, then rename that to `path`.

    Whatever goes wrong, a file that was at `path` stays as it was and no temporary file is left.
    A link is followed. The new file has the mode that the umask gives.

    Raises:
        OutputError: the folder is missing, `path` is not a plain file or may not be written, or
            the disk is full.
    """
    with explained(path):
        target = find_target(path)
        temporary = create_beside(target)
        try:
            with os.fdopen(temporary.descriptor, "wb") as stream:
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary.path, target)
        except BaseException:
            temporary.remove()
            raise


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise what write_atomically would raise, before long work is spent on the content.

    Raises:
        OutputError: the folder is missing, or `path` is not a plain file or may not be written.
    """
    with explained(path):
        target = find_target(path)
        temporary = create_beside(target)
        os.close(temporary.descriptor)
        temporary.remove()


class Temporary:
    """Hold a new file that is open for writing.

    Attributes:
        path: where it is.
        descriptor: its open file descriptor.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor

    def remove(self) -> None:
        """Delete the file if it is still there."""
        with contextlib.suppress(OSError):
            self.path.unlink()


def find_target(path: str | os.PathLike[str]) -> Path:
    """Return the real path of an output, once it is clear that a plain file can be there."""
    if "\0" in os.fspath(path):
        raise OutputError(f"{os.fspath(path)!r} is no file name; choose another")
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise OutputError(f"{path} is a folder; give a file name in it")
    if not target.parent.is_dir():
        raise OutputError(f"folder {target.parent} does not exist; make it or choose another")
    if target.exists():
        if not target.is_file():
            raise OutputError(f"{path} is not a plain file; choose another name")
        if not os.access(target, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
            raise OutputError(f"{path} is write-protected; choose another name or change its mode")
    return target


def create_beside(target: Path) -> Temporary:
    """Create a temporary file in the target's folder, with the mode of any new file."""
    # tempfile would make it readable to its owner only, and the umask can't be read safely.
    path = target.with_name(f".{secrets.token_hex(6)}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    return Temporary(path, os.open(path, flags, 0o666))


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

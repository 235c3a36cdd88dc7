"""Output files: whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from vkrt.errors import OutputError
from vkrt.temporary import TemporaryFile, explained

__all__ = ["check_writable", "write_atomically"]


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
        temporary = TemporaryFile(target.parent)
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
        temporary = TemporaryFile(target.parent)
        os.close(temporary.descriptor)
        temporary.remove()


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

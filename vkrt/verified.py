"""Files of a bundle, read once: held against their digest, parsed, and known again later."""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vkrt.errors import CheckpointError
from vkrt.manifest import CHUNK, GET_AGAIN
from vkrt.onnx_file import parse_onnx
from vkrt.onnx_graph import OnnxFile
from vkrt.protobuf import Data

__all__ = ["Stamp", "Verified", "check_unchanged", "verify"]

# Up to this size a file is read at once, which is faster to parse than a mapped one.
SMALL = 32 * 1024**2
# A pipe would wait for its writer; a link may lead out of the folder.
FLAGS = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))


@dataclass(frozen=True)
class Stamp:
    """Tell a file from another that took its place, or from itself with another content."""

    device: int
    inode: int
    size: int
    written: int


@dataclass(frozen=True)
class Verified:
    """Hold what is known of a file whose digest is right; `onnx` only of one that was parsed."""

    stamp: Stamp
    onnx: OnnxFile | None


def verify(folder: Path, name: str, size: int, digest: str, parse: bool) -> Verified:
    """Hold a file of a bundle against its size and digest.

    Args:
        parse: read it as an .onnx file too, from the very bytes of which the digest was taken.

    Raises:
        CheckpointError: it is missing, a link, no file, changed, or no .onnx file that all
            runtimes read alike.
    """
    path = folder / name
    try:
        descriptor = os.open(path, os.O_RDONLY | FLAGS)
    except FileNotFoundError:
        raise CheckpointError(f"{folder} lacks {name}: {GET_AGAIN}") from None
    except (OSError, ValueError) as error:
        if path.is_symlink():
            raise CheckpointError(f"{path} is a link out of its folder: {GET_AGAIN}") from None
        raise CheckpointError(f"{path} can't be read ({error}): {GET_AGAIN}") from None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise CheckpointError(f"{path} is no file: {GET_AGAIN}")
    with os.fdopen(descriptor, "rb") as file:
        same = found.st_size == size
        try:
            onnx = examine(file, size, digest, parse) if same else None
        except ChangedError:
            same = False
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path} is not a readable .onnx file ({error}): {GET_AGAIN}"
            ) from None
    if not same:
        raise CheckpointError(f"{path} was changed since the export: {GET_AGAIN}")
    return Verified(stamp_of(found), onnx)


class ChangedError(Exception):
    """Raised when a file has not the digest that it should have."""


def examine(file: BinaryIO, size: int, digest: str, parse: bool) -> OnnxFile | None:
    """Return what an open file says as an .onnx file, if it is to be parsed.

    Raises:
        ChangedError: its digest is another.
        ValueError: it can't be parsed.
    """
    if not parse:
        found = hashlib.sha256()
        while chunk := file.read(CHUNK):
            found.update(chunk)
        check_digest(found.hexdigest(), digest)
        return None
    with content_of(file, size) as data:
        check_digest(hashlib.sha256(data).hexdigest(), digest)
        return parse_onnx(data)


def check_digest(found: str, wanted: str) -> None:
    """Refuse another digest."""
    if found != wanted:
        raise ChangedError


@contextmanager
def content_of(file: BinaryIO, size: int) -> Iterator[Data]:
    """Give the content of a file: read if it is small, else mapped."""
    if size <= SMALL:
        yield file.read()
        return
    with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
        yield view


def stamp_of(found: os.stat_result) -> Stamp:
    """Return the stamp of a file."""
    return Stamp(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def check_unchanged(folder: Path, stamps: Mapping[str, Stamp]) -> None:
    """Refuse files that are no longer those that were verified.

    Raises:
        CheckpointError: names the first one.
    """
    for name, stamp in stamps.items():
        path = folder / name
        try:
            same = stamp_of(path.lstat()) == stamp
        except OSError:
            same = False
        if not same:
            raise CheckpointError(
                f"{path} was changed or replaced while the bundle was in use: load it again"
            )

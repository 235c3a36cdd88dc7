"""What was found out about a file, kept in the cache until the file changes; imports no torch."""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from vkrt.errors import VkrtError
from vkrt.manifest import digest_of
from vkrt.media.files import write_atomically

__all__ = ["RECORDS", "first_time", "recall", "remember", "remembered_digest"]

# The folder in the cache; each record is far smaller than this.
RECORDS = "files"
MAX_RECORD_BYTES = 64 * 1024
# A file that is written twice within a tick of the clock looks unchanged.
TICK_NS = 2 * 10**9


def remembered_digest(cache: Path, file: Path) -> str:
    """Return the sha256 of a file, which is read again only once it has changed.

    Raises:
        OSError: it can't be read.
    """
    known = recall(cache, file).get("sha256")
    if isinstance(known, str):
        return known
    before = identity(file)
    digest = digest_of(file)
    if identity(file) == before and time.time_ns() - before["mtime_ns"] > TICK_NS:
        remember(cache, file, sha256=digest)
    return digest


def first_time(cache: Path, file: Path, what: str) -> bool:
    """Tell whether something is to be told of a file for the first time, and remember that.

    Where nothing can be remembered it is no first time, since nobody could ever stop it.
    """
    told = recall(cache, file).get("told", [])
    return what not in told and remember(cache, file, told=[*told, what])


def recall(cache: Path, file: Path) -> dict[str, Any]:
    """Return what is known of a file; nothing if it is not what it was."""
    with suppress(OSError, ValueError, RecursionError):
        path = place(cache, file)
        if path.stat().st_size <= MAX_RECORD_BYTES:
            content = json.loads(path.read_bytes())
            if isinstance(content, dict) and content.pop("file", None) == identity(file):
                return content
    return {}


def remember(cache: Path, file: Path, **facts: Any) -> bool:
    """Keep facts beside those that are known of a file; return whether that was possible."""
    try:
        content = {"file": identity(file), **recall(cache, file), **facts}
        path = place(cache, file)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content).encode()
        write_atomically(path, lambda stream: stream.write(text))
    except (OSError, VkrtError):
        return False
    return True


def identity(file: Path) -> dict[str, Any]:
    """Return what tells a file from what is there after a change."""
    status = file.stat()
    return {
        "path": os.path.realpath(file),
        "bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        # Copying over a file may keep all else.
        "ctime_ns": status.st_ctime_ns,
        "inode": status.st_ino,
    }


def place(cache: Path, file: Path) -> Path:
    """Return where the record of a file is."""
    name = hashlib.blake2b(os.fsencode(os.path.realpath(file)), digest_size=16).hexdigest()
    return cache / RECORDS / f"{name}.json"

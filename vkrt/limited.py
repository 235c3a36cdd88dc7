"""Files of bounded size, and JSON of bounded depth. Torch-free."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

from vkrt.weights.safety_limits import MAX_JSON_DEPTH

__all__ = ["TooLargeError", "parse_json", "read_limited"]

# A pipe would wait for its writer.
NONBLOCK = getattr(os, "O_NONBLOCK", 0)


class TooLargeError(ValueError):
    """Raised when a file is larger than any of its kind."""


def read_limited(path: Path, most: int) -> bytes:
    """Return the content of a file.

    Raises:
        OSError: it can't be read.
        TooLargeError: it is larger than `most` bytes.
        ValueError: it is no file.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is no regular file")
        content = file.read(most + 1)
    if len(content) > most:
        raise TooLargeError(f"it is larger than {most} bytes")
    return content


def parse_json(content: bytes | str) -> Any:
    """Return what JSON says.

    Raises:
        ValueError: it is no JSON, nested too deeply, or has a number that JSON does not know.
    """
    try:
        value = json.loads(content, parse_constant=refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    check_depth(value)
    return value


def refuse(name: str) -> NoReturn:
    """Refuse NaN and Infinity, which json would take."""
    raise ValueError(f"{name} is no number of JSON")


def check_depth(value: Any) -> None:
    """Refuse lists and objects within more than MAX_JSON_DEPTH others."""
    level, depth = [value], 0
    while level:
        if depth > MAX_JSON_DEPTH:
            raise ValueError("it is nested too deeply")
        depth += 1
        inner: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                inner += (v for v in each.values() if isinstance(v, dict | list))
            elif isinstance(each, list):
                inner += (v for v in each if isinstance(v, dict | list))
        level = inner

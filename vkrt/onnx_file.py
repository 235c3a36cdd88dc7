"""Which other files an .onnx file refers to, read from its bytes alone: needs no onnx package."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from vkrt.errors import CheckpointError

__all__ = ["external_files"]

# Which fields of which protobuf message lead to a tensor: number of the field, kind of message.
# Format: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
LEADS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {},
}
OP_TYPE = 4
KEY, VALUE = 1, 2
# A node of this kind has a provider's own file loaded, by a path in its attributes.
FOREIGN = b"EPContext"

# Kinds of protobuf field: a number, 8 bytes, bytes with their length in front, 4 bytes.
NUMBER, EIGHT, BYTES, FOUR = 0, 1, 2, 5
MAX_VARINT_BYTES = 10
# Graphs lie in attributes of nodes in graphs; ours are flat.
MAX_DEPTH = 64


def external_files(path: Path) -> set[str]:
    """Return the location of every tensor that an .onnx file keeps outside itself, as it states it.

    Raises:
        CheckpointError: it is no readable .onnx file, or refers to files in another way.
    """
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
            memoryview(data) as view,
        ):
            return {found.decode("utf-8", "replace") for found in locations(view)}
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a readable .onnx file ({error}); export the bundle again"
        ) from None


def locations(view: memoryview) -> Iterator[bytes]:
    """Give every location in a model.

    Raises:
        ValueError: it is damaged, nested too deeply, or has a node that loads files.
    """
    waiting = [("model", 0, len(view), 0)]
    while waiting:
        kind, start, end, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise ValueError("nested too deeply")
        keys: list[bytes] = []
        values: list[bytes] = []
        for number, first, last in byte_fields(view, start, end):
            inner = LEADS[kind].get(number)
            if inner is not None:
                waiting.append((inner, first, last, depth + 1))
            elif kind == "entry" and number == KEY:
                keys.append(bytes(view[first:last]))
            elif kind == "entry" and number == VALUE:
                values.append(bytes(view[first:last]))
            elif kind == "node" and number == OP_TYPE and view[first:last] == FOREIGN:
                raise ValueError(f"a node {FOREIGN.decode()} loads files of its own")
        if b"location" in keys:
            yield from values


def byte_fields(view: memoryview, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Give the number, start and end of every field of bytes in the message at [at, end).

    Raises:
        ValueError: it is no protobuf message, or a field reaches beyond it.
    """
    while at < end:
        tag, at = varint(view, at, end)
        kind = tag & 7
        if kind == BYTES:
            size, at = varint(view, at, end)
            if size > end - at:
                raise ValueError("truncated")
            yield tag >> 3, at, at + size
            at += size
        elif kind == NUMBER:
            _, at = varint(view, at, end)
        elif kind in (EIGHT, FOUR):
            at += 8 if kind == EIGHT else 4
        else:
            raise ValueError("damaged")
    if at != end:
        raise ValueError("truncated")


def varint(view: memoryview, at: int, end: int) -> tuple[int, int]:
    """Return the number at `at`, seven bits a byte and the lowest first, and where it ends."""
    value = 0
    for index in range(min(MAX_VARINT_BYTES, end - at)):
        byte = view[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise ValueError("truncated")

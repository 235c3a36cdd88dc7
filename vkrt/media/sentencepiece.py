"""Files of sentencepiece (spiece.model), read without its package: a protobuf of a few fields."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from vkrt.errors import CheckpointError

__all__ = ["CONTROL", "UNKNOWN", "USER_DEFINED", "Piece", "UnigramModel", "read_unigram"]

# Kinds of pieces: the last three are for what no piece covers, for no text, and never split.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
UNIGRAM = 1
# How protobuf stores a field.
VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5
LONGEST_VARINT = 10

Value: TypeAlias = "int | memoryview"


@dataclass(frozen=True)
class Piece:
    """Hold a token of the vocabulary: its text, the logarithm of its likelihood and its kind."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class UnigramModel:
    """Hold what a file says.

    Attributes:
        pieces: the vocabulary; the index of a piece is its token id.
        unknown: the id of what no piece covers.
        charsmap: how characters are normalized, in sentencepiece's own form; may be empty.
    """

    pieces: tuple[Piece, ...]
    unknown: int
    charsmap: bytes


class DamageError(ValueError):
    """Say that bytes are no protobuf."""


def read_varint(data: memoryview, place: int) -> tuple[int, int]:
    """Return the whole number at a place and the place behind it."""
    value = 0
    for index in range(LONGEST_VARINT):
        if place + index >= len(data):
            break
        byte = data[place + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, place + index + 1
    raise DamageError("a number has no end")


def read_fields(data: memoryview) -> Iterator[tuple[int, Value]]:
    """Give the number and the value of each field of a message, in order."""
    place = 0
    while place < len(data):
        key, place = read_varint(data, place)
        if key & 7 == VARINT:
            value, place = read_varint(data, place)
            yield key >> 3, value
            continue
        sizes = {EIGHT_BYTES: 8, FOUR_BYTES: 4}
        if key & 7 == BYTES:
            size, place = read_varint(data, place)
        elif key & 7 in sizes:
            size = sizes[key & 7]
        else:
            raise DamageError(f"a field has the unknown form {key & 7}")
        if place + size > len(data):
            raise DamageError("it is cut off")
        yield key >> 3, data[place : place + size]
        place += size


def as_bytes(value: Value) -> memoryview:
    """Return a value that must be bytes."""
    if isinstance(value, int):
        raise DamageError("a number is where a text should be")
    return value


def as_number(value: Value) -> int:
    """Return a value that must be a whole number."""
    if not isinstance(value, int):
        raise DamageError("a text is where a number should be")
    return value


def read_piece(data: memoryview) -> Piece:
    """Return the piece of a message."""
    text, score, kind = "", 0.0, NORMAL
    for number, value in read_fields(data):
        if number == 1:
            text = bytes(as_bytes(value)).decode("utf-8")
        elif number == 2:
            (score,) = struct.unpack("<f", as_bytes(value))
        elif number == 3:
            kind = as_number(value)
    return Piece(text, score, kind)


def parse(data: memoryview) -> UnigramModel:
    """Return the model of a file's content.

    Raises:
        ValueError, struct.error: it is damaged or of another kind.
    """
    pieces: list[Piece] = []
    kind, unknown, charsmap = UNIGRAM, 0, b""
    for number, value in read_fields(data):
        if number == 1:
            pieces.append(read_piece(as_bytes(value)))
        elif number == 2:
            trained = dict(read_fields(as_bytes(value)))
            kind = as_number(trained.get(3, UNIGRAM))
            unknown = as_number(trained.get(40, 0))
        elif number == 3:
            charsmap = bytes(as_bytes(dict(read_fields(as_bytes(value))).get(2, memoryview(b""))))
    if kind != UNIGRAM:
        raise DamageError("its vocabulary is not of the unigram kind that T5 has")
    if not unknown < len(pieces):
        raise DamageError(f"it has {len(pieces)} tokens, not one for what is unknown")
    return UnigramModel(tuple(pieces), unknown, charsmap)


def read_unigram(path: Path) -> UnigramModel:
    """Return what a spiece.model holds.

    Raises:
        CheckpointError: it is not there, damaged, or of another kind.
    """
    try:
        return parse(memoryview(path.read_bytes()))
    except OSError as error:
        raise CheckpointError(
            f"{path} can't be read ({error.strerror}); give T5's spiece.model"
        ) from None
    except (ValueError, struct.error) as error:
        raise CheckpointError(
            f"{path} is no sentencepiece model ({error}); give T5's spiece.model anew"
        ) from None

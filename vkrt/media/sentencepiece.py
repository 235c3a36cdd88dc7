"""Files of sentencepiece (spiece.model), read without its package: a protobuf of a few fields."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TypeAlias

from vkrt.errors import CheckpointError
from vkrt.limited import read_limited
from vkrt.protobuf import DamageError, Reader, Schema, schema
from vkrt.weights.safety_limits import (
    MAX_TOKEN_CHARACTERS,
    MAX_TOKENIZER_BYTES,
    MAX_VOCABULARY,
)

__all__ = ["CONTROL", "UNKNOWN", "USER_DEFINED", "Piece", "UnigramModel", "read_unigram"]

# Kinds of pieces: the last three are for what no piece covers, for no text, and never split.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
UNIGRAM = 1
# The fields that are read, and others pass: sentencepiece_model.proto has room for more.
MODEL = schema("1*:piece 2:trainer 3:normalizer", is_open=True)
PIECE = schema("1:bytes 2:four 3:number", is_open=True)
TRAINER = schema("3:number 40:number", is_open=True)
NORMALIZER = schema("2:bytes", is_open=True)
# A token has three; the settings of the training have some fifty.
MAX_VOCABULARY_FIELDS = 4 * MAX_VOCABULARY + 1000

Fields: TypeAlias = Iterator[tuple[int, str, int, int, int]]


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


class Parser:
    """Read one file; each method reads a message at [at, end)."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._reader = Reader(data, MAX_VOCABULARY_FIELDS)

    def model(self) -> UnigramModel:
        pieces: list[Piece] = []
        kind, unknown, charsmap = UNIGRAM, 0, b""
        for number, _, _, first, last in self._reader.fields(0, len(self._data), MODEL):
            if number == 1:
                pieces.append(self._piece(first, last))
            elif number == 2:
                trained = {n: value for n, _, _, value, _ in self._fields(first, last, TRAINER)}
                kind, unknown = trained.get(3, UNIGRAM), trained.get(40, 0)
            elif number == 3:
                charsmap = self._charsmap(first, last)
        if kind != UNIGRAM:
            raise DamageError("its vocabulary is not of the unigram kind that T5 has")
        if len(pieces) > MAX_VOCABULARY:
            raise DamageError(f"it has {len(pieces)} tokens, {MAX_VOCABULARY} at most are read")
        if not unknown < len(pieces):
            raise DamageError(f"it has {len(pieces)} tokens, not one for what is unknown")
        return UnigramModel(tuple(pieces), unknown, charsmap)

    def _fields(self, at: int, end: int, known: Schema) -> Fields:
        return self._reader.fields(at, end, known)

    def _piece(self, at: int, end: int) -> Piece:
        text, score, kind = "", 0.0, NORMAL
        for number, _, _, first, last in self._fields(at, end, PIECE):
            if number == 1:
                text = self._reader.text(first, last)
            elif number == 2:
                (score,) = struct.unpack("<f", self._data[first:last])
            elif number == 3:
                kind = first
        if len(text) > MAX_TOKEN_CHARACTERS or not isfinite(score):
            raise DamageError(f"the token {text[:20]!r} is too long, or its score is no number")
        return Piece(text, score, kind)

    def _charsmap(self, at: int, end: int) -> bytes:
        for number, _, _, first, last in self._fields(at, end, NORMALIZER):
            if number == 2:
                return self._data[first:last]
        return b""


def read_unigram(path: Path) -> UnigramModel:
    """Return what a spiece.model holds.

    Raises:
        CheckpointError: it is not there, damaged, or of another kind.
    """
    try:
        return Parser(read_limited(path, MAX_TOKENIZER_BYTES)).model()
    except OSError as error:
        raise CheckpointError(
            f"{path} can't be read ({error.strerror}); give T5's spiece.model"
        ) from None
    except ValueError as error:
        raise CheckpointError(
            f"{path} is no sentencepiece model ({error}); give T5's spiece.model anew"
        ) from None

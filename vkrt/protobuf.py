"""Protobuf messages, read as strictly as the strictest of their readers; needs no package.

Readers differ in what they make of bytes that no writer writes: a number with more bytes than it
needs, a tag beyond 32 bits, a field that comes twice. Whoever checks a file that another reads has
to refuse all of these. Format: https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

__all__ = [
    "BYTES",
    "EIGHT",
    "FOUR",
    "NUMBER",
    "DamageError",
    "Field",
    "Reader",
    "Schema",
    "schema",
]

# Kinds of field: a number, 8 bytes, bytes with their length in front, 4 bytes.
NUMBER, EIGHT, BYTES, FOUR = 0, 1, 2, 5
KINDS = {"number": NUMBER, "eight": EIGHT, "bytes": BYTES, "four": FOUR}
# Repeated numbers are written one by one, or together in a field of bytes.
PACKABLE = (NUMBER, EIGHT, FOUR)

MAX_VARINT_BYTES = 10
MAX_NUMBER = 2**64 - 1
MAX_TAG = 2**32 - 1
MAX_LENGTH = 2**31 - 1

Data: TypeAlias = "bytes | memoryview"


class DamageError(ValueError):
    """Raised when bytes are no protobuf, or such as no writer writes."""


@dataclass(frozen=True)
class Field:
    """Describe a field of a message.

    Attributes:
        number: its number.
        bit: a bit of its own where it may come once, else 0.
        message: the name of the message that it holds, "" where it holds none.
    """

    number: int
    bit: int
    message: str


@dataclass(frozen=True)
class Schema:
    """Hold the fields of a message by their tags; others are refused unless it is open."""

    fields: Mapping[int, Field]
    is_open: bool = False


def schema(text: str, is_open: bool = False) -> Schema:
    """Return the schema that a text describes: "1:bytes 5*:number 7:graph".

    Args:
        text: for each field its number, a star where it may come often, and a kind (number, eight,
            bytes, four) or the name of another message.
        is_open: let fields of other numbers pass.
    """
    fields = {}
    for item in text.split():
        label, _, what = item.partition(":")
        number, often = int(label.rstrip("*")), label.endswith("*")
        kind = KINDS.get(what, BYTES)
        field = Field(number, 0 if often else 1 << number, "" if what in KINDS else what)
        fields[number << 3 | kind] = field
        if often and kind in PACKABLE:
            fields[number << 3 | BYTES] = field
    return Schema(fields, is_open)


class Reader:
    """Read the messages of a file.

    Args:
        data: its content.
        limit: the most fields that are read, over all messages.
    """

    def __init__(self, data: Data, limit: int) -> None:
        self.data = data
        self._left = limit

    def fields(self, at: int, end: int, known: Schema) -> Iterator[tuple[int, str, int, int, int]]:
        """Give the fields of the message at [at, end), in order.

        Yields:
            its number; the name of the message that it holds; its kind; its value and where it
            ends where it is a number, else where it starts and ends.

        Raises:
            DamageError: it is no such message, or no writer writes it so.
        """
        data, fields, seen = self.data, known.fields, 0
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise DamageError("it has more fields than any file of its kind")
            tag = data[at]
            at += 1
            if tag >= 0x80:
                tag, at = varint(data, at - 1, end, MAX_TAG)
            field = fields.get(tag) or unknown(tag, known)
            if field.bit & seen:
                raise DamageError(f"field {field.number} comes twice")
            seen |= field.bit
            kind = tag & 7
            if kind in (EIGHT, FOUR):
                first, at = at, at + (8 if kind == EIGHT else 4)
            elif at < end and data[at] < 0x80:  # most are this short, and a call costs time
                first = data[at]
                at += 1
            else:
                first, at = varint(data, at, end, MAX_LENGTH if kind == BYTES else MAX_NUMBER)
            if kind == BYTES:
                first, at = at, at + first
            if at > end:
                raise DamageError("it is cut off")
            yield field.number, field.message, kind, first, at

    def numbers(self, kind: int, first: int, last: int) -> list[int]:
        """Return the numbers of a repeated field, as `fields` gave it.

        Raises:
            DamageError: they are damaged, or too many.
        """
        if kind == NUMBER:
            return [first]
        found = []
        while first < last:
            self._left -= 1
            if self._left < 0:
                raise DamageError("it has more numbers than any file of its kind")
            value, first = varint(self.data, first, last)
            found.append(value)
        return found

    def text(self, first: int, last: int) -> str:
        """Return a text.

        Raises:
            DamageError: it is not UTF-8.
        """
        try:
            return str(self.data[first:last], "utf-8")
        except UnicodeDecodeError:
            raise DamageError("a text is not UTF-8") from None


def unknown(tag: int, known: Schema) -> Field:
    """Return a field that a schema does not describe, if it lets such pass."""
    number, kind = tag >> 3, tag & 7
    if kind not in (NUMBER, EIGHT, BYTES, FOUR) or number == 0:
        raise DamageError(f"a field has the tag {tag}, which no writer writes")
    if any(field.number == number for field in known.fields.values()):
        raise DamageError(f"field {number} has the wrong form {kind}")
    if not known.is_open:
        raise DamageError(f"it has the unknown field {number}")
    return Field(number, 0, "")


def varint(data: Data, at: int, end: int, most: int = MAX_NUMBER) -> tuple[int, int]:
    """Return the number at a place, seven bits a byte and the lowest first, and where it ends.

    Raises:
        DamageError: it has no end, is beyond `most`, or has more bytes than it needs.
    """
    value = shift = 0
    for place in range(at, min(end, at + MAX_VARINT_BYTES)):
        byte = data[place]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value > most:
                raise DamageError(f"the number {value} is too large")
            if byte == 0 and shift:
                raise DamageError("a number has more bytes than it needs")
            return value, place + 1
        shift += 7
    raise DamageError("a number has no end")

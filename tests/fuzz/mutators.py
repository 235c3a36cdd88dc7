"""Ways to damage bytes: blind ones, and ones that know a little of what they damage."""

from __future__ import annotations

import copy
import io
import json
import random
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

__all__ = [
    "AWARE",
    "BLIND",
    "Mutator",
    "join_fields",
    "mutate",
    "overlong",
    "sealed",
    "split_fields",
    "varint",
    "written",
]

# Takes a source of chance and what to damage; gives it damaged.
Mutator = Callable[[random.Random, bytes], bytes]

# Where readers go wrong: the edges of what numbers of some width hold.
EDGES = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    2**63,
    2**64 - 1,
)
# A large copy is made up to this size only: inputs stay small.
LARGEST = 64 * 1024


def place(rng: random.Random, data: bytes, width: int = 1) -> int:
    return rng.randrange(max(1, len(data) - width + 1))


def flip_bits(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if changed:
            changed[place(rng, data)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def set_bytes(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if changed:
            changed[place(rng, data)] = rng.choice((0, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(changed)


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def remove(rng: random.Random, data: bytes) -> bytes:
    at = place(rng, data)
    return data[:at] + data[at + rng.choice((1, 2, 4, 16, 64)) :]


def double(rng: random.Random, data: bytes) -> bytes:
    first = place(rng, data)
    part = data[first : first + rng.choice((1, 4, 16, 64, 256))]
    times = rng.choice((1, 1, 2, 16, 256))
    at = place(rng, data)
    return data[:at] + (part * times)[:LARGEST] + data[at:]


def move(rng: random.Random, data: bytes) -> bytes:
    first, at = place(rng, data), place(rng, data)
    size = rng.choice((1, 4, 16, 64))
    part, rest = data[first : first + size], data[:first] + data[first + size :]
    return rest[:at] + part + rest[at:]


def put_number(rng: random.Random, data: bytes) -> bytes:
    """Put an edge in place of a length, a size or an offset of any width."""
    width = rng.choice((1, 2, 4, 8))
    number = rng.choice((*EDGES, len(data), len(data) - 1, rng.randrange(2**16))) % 256**width
    at = place(rng, data, width)
    return data[:at] + number.to_bytes(width, rng.choice(("little", "big"))) + data[at + width :]


BLIND: tuple[Mutator, ...] = (flip_bits, set_bytes, cut, remove, double, move, put_number)


# JSON: the text stays one that can be parsed.

ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1.5,
        1e308,
        10**30,
        -(2**63),
        2**32,
        "",
        "a",
        "\ud800",
        "\0",
        "../x",
    ),
    *([], {}, [[]], [0] * 100, {"a": 1}, "x" * 5000, float("nan"), float("inf")),
)


def spots(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Return every container in a value with each key or index in it, added to `found`."""
    if isinstance(value, dict):
        items: Any = list(value.items())
    else:
        items = list(enumerate(value)) if isinstance(value, list) else []
    for key, inner in items:
        found.append((value, key))
        spots(inner, found)
    return found


def change_json(rng: random.Random, data: bytes) -> bytes:
    try:
        value = json.loads(data)
        spots(value, [])
    except (ValueError, RecursionError):
        return flip_bits(rng, data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        try:
            found = spots(value, [])
        except RecursionError:  # it was put into itself
            break
        if not found:
            return json.dumps(rng.choice(ODD)).encode()
        container, key = rng.choice(found)
        act = rng.randrange(5)
        if act == 0:
            del container[key]
        elif act == 1:
            other, name = rng.choice(found)
            container[key] = json.loads(json.dumps(other[name])) if name in keys(other) else None
        elif act == 2 and isinstance(container, dict):
            container[rng.choice(("", "a", "__class__", "size", str(key) * 2))] = odd(rng)
        elif act == 3 and isinstance(container[key], int):
            container[key] = rng.choice((*EDGES, -container[key], container[key] + 1, 0.5))
        else:
            container[key] = odd(rng)
    return json.dumps(value).encode()


def odd(rng: random.Random) -> Any:
    """Return a value of its own: those of ODD stay as they are."""
    return copy.deepcopy(rng.choice(ODD))


def keys(container: Any) -> Any:
    return container if isinstance(container, dict) else range(len(container))


def change_header(rng: random.Random, data: bytes) -> bytes:
    """Change the JSON at the head of a safetensors file and, most times, its length with it."""
    size = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + size], data[8 + size :]
    changed = change_json(rng, header)
    if rng.random() < 0.5:
        changed = change_notes(rng, header)
    stated = len(changed) if rng.random() < 0.9 else rng.choice(EDGES)
    return stated.to_bytes(8, "little") + changed + rest


def change_notes(rng: random.Random, header: bytes) -> bytes:
    """Change the JSON that lies as a text in a safetensors file's own."""
    try:
        value = json.loads(header)
        notes = value["__metadata__"]
        for key, text in notes.items():
            notes[key] = change_json(rng, text.encode()).decode()
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return change_json(rng, header)
    return json.dumps(value).encode()


def nest_json(rng: random.Random, data: bytes) -> bytes:
    """Put a value within very many lists or objects."""
    depth = rng.choice((10, 63, 65, 200, 1000, 20_000))
    start, end = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
    return start * depth + data[:1000] + end * depth


# Protobuf: the lengths of what is around a change are made right again.


def varint(number: int) -> bytes:
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def overlong(number: int, size: int) -> bytes:
    """Return a number in more bytes than it needs."""
    shortest = varint(number)
    if len(shortest) >= size:
        return shortest
    return bytes([*(b | 128 for b in shortest), *[128] * (size - len(shortest) - 1), 0])


def read_number(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def split_fields(data: bytes) -> list[tuple[int, bytes]] | None:
    """Return tags and contents of the fields of a message, None if it is none."""
    fields, at = [], 0
    try:
        while at < len(data):
            tag, at = read_number(data, at)
            first = at
            if tag & 7 == 2:
                size, first = read_number(data, at)
                at = first + size
            elif tag & 7 == 0:
                _, at = read_number(data, at)
            elif tag & 7 in (1, 5):
                at += 8 if tag & 7 == 1 else 4
            else:
                return None
            if at > len(data) or not tag >> 3:
                return None
            fields.append((tag, data[first:at]))
    except IndexError:
        return None
    return fields


def join_fields(fields: Sequence[tuple[int, bytes]]) -> bytes:
    return b"".join(written(tag, content) for tag, content in fields)


def written(tag: int, content: bytes) -> bytes:
    return varint(tag) + (varint(len(content)) if tag & 7 == 2 else b"") + content


def change_protobuf(rng: random.Random, data: bytes) -> bytes:
    """Change one field somewhere in a message or in those that it holds."""
    fields = split_fields(data)
    if not fields:
        return flip_bits(rng, data)
    index = rng.randrange(len(fields))
    tag, content = fields[index]
    if tag & 7 == 2 and len(content) > 2 and split_fields(content) and rng.random() < 0.8:
        fields[index] = tag, change_protobuf(rng, content)
        return join_fields(fields)
    odd = odd_field(rng, tag, content, fields)
    return join_fields(fields[:index]) + odd + join_fields(fields[index + 1 :])


def odd_field(
    rng: random.Random, tag: int, content: bytes, fields: Sequence[tuple[int, bytes]]
) -> bytes:
    """Return something in place of a field that readers may take in different ways."""
    plain = written(tag, content)
    act = rng.randrange(10)
    if act == 0:
        return plain + plain  # twice
    if act == 1:
        return b""
    if act == 2:  # a tag in more bytes than it needs
        return overlong(tag, rng.choice((2, 5, 6, 10))) + plain[len(varint(tag)) :]
    if act == 3:  # a tag that is another one in its low 32 bits
        return varint(tag | 1 << rng.choice((32, 33, 34, 40, 60))) + plain[len(varint(tag)) :]
    if act == 4:  # another kind of field of the same number
        return written(tag & ~7 | rng.choice((0, 1, 2, 3, 4, 5, 6, 7)), content)
    if act == 5:  # another number
        return written((rng.choice((0, 1, 13, 14, 100, 2**29 - 1, 2**29)) << 3) | tag & 7, content)
    if act == 6 and tag & 7 == 2:  # a length in more bytes, or a wrong one
        size = rng.choice((len(content), *EDGES))
        return varint(tag) + overlong(size, rng.choice((1, 2, 5, 10))) + content
    if act == 7:
        return plain + written(*rng.choice(list(fields)))
    if act == 8 and tag & 7 == 0:
        return varint(tag) + overlong(rng.choice(EDGES), rng.choice((1, 2, 10)))
    return written(tag, flip_bits(rng, content) if content else b"\0")


# PNG: the checksum of a changed chunk is made right again.


def change_chunk(rng: random.Random, data: bytes) -> bytes:
    chunks, at = [], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append(data[at + 4 : at + 8 + size])
        at += 12 + size
    if not chunks:
        return flip_bits(rng, data)
    index = rng.randrange(len(chunks))
    kind, content = chunks[index][:4], chunks[index][4:]
    act = rng.randrange(6)
    if act == 0:
        chunks.pop(index)
    elif act == 1:
        chunks.insert(rng.randrange(len(chunks)), kind + content)
    else:
        chunks[index] = kind + rng.choice(BLIND)(rng, content or b"\0")
    return data[:8] + b"".join(map(sealed, chunks))


def sealed(chunk: bytes) -> bytes:
    size = (len(chunk) - 4) % 2**32
    return size.to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")


# ZIP, of files that are stored as they are: a changed pickle keeps its place and its checksum.


def change_stored(rng: random.Random, data: bytes) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
    except Exception:  # of as many kinds as there are ways to damage it
        return flip_bits(rng, data)
    pickles = [name for name in files if name.endswith(".pkl")]
    name = rng.choice(pickles or list(files))
    act = rng.randrange(8)
    if act == 0:
        files.pop(rng.choice(list(files)))
    elif act == 1:
        files[rng.choice(list(files))] = b""
    else:
        files[name] = rng.choice(BLIND)(rng, files[name])
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for each, content in files.items():
            archive.writestr(each, content)
    return stream.getvalue()


AWARE: dict[str, tuple[Mutator, ...]] = {
    "bytes": (),
    "png": (change_chunk,) * 10,
    "zip": (change_stored,) * 5,
    "json": (change_json, change_json, change_json, nest_json),
    "protobuf": (change_protobuf,) * 5,
    "safetensors": (change_header,) * 5,
}


def mutate(rng: random.Random, seeds: Sequence[bytes], kind: str) -> bytes:
    """Return one of the seeds, damaged once or a few times.

    Args:
        kind: what the seeds are, a key of AWARE.
    """
    data = rng.choice(seeds)
    choices = BLIND + AWARE[kind] * 2
    if rng.random() < 0.05:
        other = rng.choice(seeds)
        data = cut(rng, data) + other[place(rng, other) :]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = rng.choice(choices)(rng, data)
    return data

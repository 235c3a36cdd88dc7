"""Find where a file of torch.save keeps its pickle and its storages, in either of its formats."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from vkrt.errors import CheckpointError
from vkrt.weights.inert_pickle import Reader, read_pickle
from vkrt.weights.safety_limits import MAX_INDEX_BYTES, MAX_TENSORS, shown

__all__ = [
    "Place",
    "Records",
    "damaged",
    "is_legacy",
    "legacy_records",
    "zip_records",
]

# Records of an archive that are no tensors: the pickle, the version and the like.
OTHER_RECORDS = 16

# The fixed parts of a zip's end: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
END = struct.Struct("<4s4H2IH")
LOCATOR = struct.Struct("<4sIQI")
END64 = struct.Struct("<4sQ2H2I4Q")
# What stands before a record: only the lengths of its name and extra field count.
LOCAL = struct.Struct("<4s22x2H")
# A 32-bit field whose value stands in the 64-bit record.
UNKNOWN = 0xFFFFFFFF

# What the format before the zip begins with: a pickled number, and then that of its version.
MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_START = b"\x80\x02\x8a\x0a" + MAGIC.to_bytes(10, "little") + b"."
LEGACY_VERSION = 1001
COUNT_BYTES = 8


class Place(NamedTuple):
    """Say where in a file a storage lies, in bytes."""

    offset: int
    size: int


class Records(NamedTuple):
    """Hold what a file's pickle says, and where the storages that it names lie."""

    content: Any
    places: Mapping[str, Place]


def zip_records(path: Path, reader: Reader) -> Records:
    """Return the parts of a zip that torch.save wrote.

    Raises:
        CheckpointError: it is no such zip, is damaged, or claims more than the limits or its size.
        CodeFoundError: its pickle names code.
    """
    records = checked_directory(path)
    by_name = {record.filename: record for record in records}
    main = next(name for name in by_name if name.rpartition("/")[2] == "data.pkl")
    root = main.removesuffix("data.pkl")
    with path.open("rb") as file:
        order = by_name.get(f"{root}byteorder")
        if order is not None and read_place(file, order) != b"little":
            raise CheckpointError(
                f"{shown(path, 1000)} was written on a big-endian machine: save it again on "
                "another one"
            )
        content, _ = read_pickle(read_place(file, by_name[main]), reader)
        storages = {
            name.removeprefix(f"{root}data/"): place_of(file, record)
            for name, record in by_name.items()
            if name.startswith(f"{root}data/")
        }
    return Records(content, storages)


def checked_directory(path: Path) -> list[zipfile.ZipInfo]:
    """Return the directory of a zip, after checking that what is read after it stays small."""
    with path.open("rb") as file:
        if directory_bytes(path, file) > MAX_INDEX_BYTES:
            raise too_many(path)
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except Exception:
        raise damaged(path) from None
    if len(records) > MAX_TENSORS + OTHER_RECORDS:
        raise too_many(path)
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise CheckpointError(
            f"{shown(path, 1000)} is a compressed zip, which torch.save never writes: "
            "unpack it, or get the checkpoint again"
        )
    if sum(record.file_size for record in records) > path.stat().st_size:
        raise damaged(path)
    check_pickle(path, records)
    return records


def directory_bytes(path: Path, file: BinaryIO) -> int:
    """Return the size of a zip's directory as its end claims it.

    torch.save writes no comment after the end, so any other layout is refused: two readers
    could take different ends for the true one.
    """
    tail_bytes = END64.size + LOCATOR.size + END.size
    size = path.stat().st_size
    file.seek(max(size - tail_bytes, 0))
    tail = file.read().rjust(tail_bytes, b"\0")
    end = END.unpack(tail[-END.size :])
    if end[0] != b"PK\x05\x06" or end[7]:
        raise damaged(path)
    if tail[END64.size :].startswith(b"PK\x06\x07"):
        end64, locator = (
            END64.unpack(tail[: END64.size]),
            LOCATOR.unpack(tail[END64.size : -END.size]),
        )
        if end64[0] != b"PK\x06\x06" or locator[2] != size - tail_bytes:
            raise damaged(path)
        return max(end64[8], 0 if end[5] == UNKNOWN else end[5])
    return end[5]


def check_pickle(path: Path, records: list[zipfile.ZipInfo]) -> None:
    """Refuse an archive that is a program or has no list of tensors."""
    names = [record.filename.rpartition("/")[2] for record in records]
    if "constants.pkl" in names:
        raise CheckpointError(
            f"{shown(path, 1000)} is a TorchScript program: save its state_dict() instead"
        )
    if "data.pkl" not in names:
        raise CheckpointError(
            f"{shown(path, 1000)} is a zip that torch.save did not write: "
            "give a .pt or .safetensors checkpoint"
        )
    if names.count("data.pkl") > 1:
        raise damaged(path)
    pickles = (record.file_size for record in records if record.filename.endswith(".pkl"))
    if sum(pickles) > MAX_INDEX_BYTES:
        raise too_many(path)


def place_of(file: BinaryIO, record: zipfile.ZipInfo) -> Place:
    """Return where the bytes of a record lie.

    Raises:
        ValueError: not where the directory says.
    """
    file.seek(record.header_offset)
    head = file.read(LOCAL.size)
    if len(head) < LOCAL.size or not head.startswith(b"PK\x03\x04"):
        raise ValueError("a record of it is not where it should be")
    _, name_bytes, extra_bytes = LOCAL.unpack(head)
    return Place(record.header_offset + LOCAL.size + name_bytes + extra_bytes, record.file_size)


def read_place(file: BinaryIO, record: zipfile.ZipInfo) -> bytes:
    """Return the bytes of a record."""
    place = place_of(file, record)
    file.seek(place.offset)
    return file.read(place.size)


def is_legacy(head: bytes) -> bool:
    """Tell the format that torch.save wrote before version 1.6 by its first bytes."""
    return head.startswith(LEGACY_START)


def legacy_records(path: Path, reader: Reader, item_bytes: Mapping[str, int]) -> Records:
    """Return the parts of a file in the format before the zip.

    Format: the pickles of a magic number, of the version, of facts on the machine, of the content
    and of the keys of its storages; then of each storage the number of values (8 bytes) and
    the values.

    Args:
        path: the file.
        reader: of the content.
        item_bytes: the bytes that a value of a storage takes, known once the content was read.

    Raises:
        CheckpointError: its pickles are too large.
        CodeFoundError: its content names code.
        ValueError, ...: it is damaged.
    """
    with path.open("rb") as file:
        head = file.read(MAX_INDEX_BYTES)
        try:
            content, keys, at = legacy_pickles(head, reader)
        except (IndexError, ValueError):
            if len(head) == MAX_INDEX_BYTES:
                raise too_many(path) from None
            raise
        if not isinstance(keys, list) or len(keys) > MAX_TENSORS:
            raise too_many(path)
        places = {}
        for key in keys:
            file.seek(at)
            count = int.from_bytes(file.read(COUNT_BYTES), "little")
            places[key] = Place(at + COUNT_BYTES, count * item_bytes[key])
            at = places[key].offset + places[key].size
        if at != path.stat().st_size:
            raise ValueError("it is shorter or longer than its storages")
    return Records(content, places)


def legacy_pickles(head: bytes, reader: Reader) -> tuple[Any, Any, int]:
    """Return the content and the keys of the storages, and where these begin."""
    plain = Reader({})
    version, at = read_pickle(head, plain, len(LEGACY_START))
    machine, at = read_pickle(head, plain, at)
    if version != LEGACY_VERSION or machine["little_endian"] is not True:
        raise ValueError("it is of another version or byte order")
    content, at = read_pickle(head, reader, at)
    keys, at = read_pickle(head, plain, at)
    return content, keys, at


def too_many(path: Path) -> CheckpointError:
    """Return the error for a file of more tensors than are read."""
    return CheckpointError(
        f"{shown(path, 1000)} holds more than the {MAX_TENSORS:,} tensors that are read: "
        "give the checkpoint of one model"
    )


def damaged(path: Path) -> CheckpointError:
    """Return the error for a file that is not whole."""
    return CheckpointError(f"{shown(path, 1000)} is truncated or damaged: get it again")

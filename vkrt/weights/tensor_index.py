"""Say where in safetensors files each tensor lies, and read runs of values from there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vkrt.errors import CheckpointError
from vkrt.weights.bounded_json import parse_json
from vkrt.weights.checkpoint import gather, is_safetensors, shapes_of_file
from vkrt.weights.family import family_of
from vkrt.weights.safetensors_file import (
    LENGTH_BYTES,
    check_dimensions,
    damaged,
    open_checked,
)
from vkrt.weights.safety_limits import MAX_HEADER_VALUES, shown

__all__ = ["Entry", "Scale", "read_entries", "read_run"]

# As the format names them (https://huggingface.co/docs/safetensors); others hold no weights.
FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
CHUNK_BYTES = 4 * 1024**2


class Entry(NamedTuple):
    """Name a tensor of a file.

    Attributes:
        path: the file.
        key: the tensor's name in it.
        shape: its shape.
        dtype: its dtype, or None where that is none of floating point.
        offset: its first byte in the file.
    """

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    offset: int


def read_entries(path: str | os.PathLike[str]) -> dict[str, Entry]:
    """Return the tensors of a safetensors file or folder by name; only headers are read.

    Raises:
        CheckpointError: as read_tensors, or the file is of another kind.
    """
    return gather(Path(path), entries_of_file)


def entries_of_file(path: Path) -> dict[str, Entry]:
    """Return the tensors of one file, as its header describes them."""
    if not is_safetensors(path):
        family = family_of(shapes_of_file(path), parts=False)
        raise CheckpointError(
            f"{shown(path, 1000)} is {family}"
            if family is not None
            else f"{shown(path, 1000)} was written by torch.save, and this model is read from "
            "safetensors only: get its .safetensors file"
        )
    try:
        # The library checks sizes, ranges and overlaps.
        with open_checked(path, "numpy"), path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            header = parse_json(file.read(length), MAX_HEADER_VALUES)
        start = LENGTH_BYTES + length
        return {
            name: entry_of(path, name, claim, start)
            for name, claim in header.items()
            if name != "__metadata__"
        }
    except CheckpointError:
        raise
    except Exception as error:
        # A crafted file can make a reader raise anything.
        raise damaged(path, error) from None


def entry_of(path: Path, name: str, claim: dict[str, Any], start: int) -> Entry:
    """Return the entry that a header's claim describes; `start` is where the data begins."""
    dtype = FLOATS.get(claim["dtype"])
    shape = tuple(map(int, claim["shape"]))
    begin, end = map(int, claim["data_offsets"])
    check_dimensions(len(shape))
    if dtype is not None and end - begin != prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} has another size than its shape")
    return Entry(path, name, shape, dtype, start + begin)


@dataclass(frozen=True)
class Scale:
    """Say what the values of a scaled tensor are to be multiplied by.

    Attributes:
        entry: one number, or one for each row.
        columns: values of a row.
    """

    entry: Entry
    columns: int

    def factors(self, first: int, count: int) -> Tensor:
        """Return what to multiply `count` values from the `first` on by, in float32.

        Raises:
            CheckpointError: the file is truncated.
        """
        if prod(self.entry.shape) == 1:
            return read_floats(self.entry, 0, 1)
        row, within = divmod(first, self.columns)
        rows = -(-(within + count) // self.columns)
        values = read_floats(self.entry, row, rows).repeat_interleave(self.columns)
        return values[within : within + count]


def read_floats(entry: Entry, first: int, count: int) -> Tensor:
    """Return values of a tensor (count,) in float32."""
    values = torch.empty(count, dtype=torch.float32)
    read_run(entry, first, values)
    return values


def read_run(entry: Entry, first: int, target: Tensor, scale: Scale | None = None) -> None:
    """Fill `target` (n,) with n values of a tensor, converted; nothing else is allocated.

    They are read and not mapped: pages of the file would count as this process's memory. Scaled
    ones are multiplied in float32.

    Args:
        entry: the tensor, of floating point.
        first: its first value, as it lies in memory.
        target: one-dimensional and contiguous, of any dtype.
        scale: of the tensor, where it is scaled.

    Raises:
        CheckpointError: the file ends before.
    """
    dtype = entry.dtype or torch.float32
    step = max(1, min(CHUNK_BYTES // dtype.itemsize, target.numel()))
    buffer = bytearray(step * dtype.itemsize)
    with entry.path.open("rb") as file:
        file.seek(entry.offset + first * dtype.itemsize)
        for index, chunk in enumerate(target.split(step)):
            view = memoryview(buffer)[: chunk.numel() * dtype.itemsize]
            if file.readinto(view) != len(view):
                raise CheckpointError(f"{shown(entry.path, 1000)} is truncated: get it again")
            values = torch.frombuffer(view, dtype=dtype)
            if scale is not None:
                values = values.float().mul_(scale.factors(first + index * step, chunk.numel()))
            chunk.copy_(values)

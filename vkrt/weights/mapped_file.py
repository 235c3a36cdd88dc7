"""Map parts of a file into memory as tensors."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["MappedFile"]

# Some systems refuse to map more than the machine's memory at once, even if it is never touched;
# each window takes a file descriptor.
WINDOW_BYTES = 1024**3


class Window(NamedTuple):
    """Hold a mapped part of a file, from its byte `start` on."""

    start: int
    memory: mmap.mmap


class MappedFile:
    """Give the values of a file in place; what is written to them stays in this process.

    A window lives as long as a tensor in it does.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.windows: list[Window] = []

    def values(self, offset: int, count: int, dtype: torch.dtype) -> Tensor:
        """Return `count` values (count,) from a byte of the file on, which is fit for the dtype.

        Ask in the order of the file: few windows are needed then.

        Raises:
            OSError: the file can't be read.
            ValueError: it ends before.
        """
        end = offset + count * dtype.itemsize
        window = next((w for w in self.windows if w.start <= offset and end <= end_of(w)), None)
        if window is None:
            window = self.open_window(offset, end)
            self.windows.append(window)
        return torch.frombuffer(
            window.memory, dtype=dtype, count=count, offset=offset - window.start
        )

    def open_window(self, offset: int, end: int) -> Window:
        """Return a window of these bytes and some that follow."""
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        with self.path.open("rb") as file:
            size = self.path.stat().st_size
            if end > size:
                raise ValueError(f"it ends at byte {size:,} of {end:,}")
            length = max(end - start, min(WINDOW_BYTES, size - start))
            memory = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=start)
        return Window(start, memory)


def end_of(window: Window) -> int:
    """Return the byte behind a window."""
    return window.start + len(window.memory)

"""A progress bar of frames, with frames/s, on a terminal's stderr only."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

__all__ = ["counted"]

T = TypeVar("T")


@contextmanager
def counted(what: str, frames: Iterable[T], total: int | None) -> Iterator[Iterable[T]]:
    """Give the frames again, with a bar that advances once one is done with.

    Args:
        what: is done with them.
        total: how many there are; None if that is unknown.
    """
    if not sys.stderr.isatty():
        yield frames
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as RemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        RemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total, rate="")

        def advance() -> Iterator[T]:
            begun = time.perf_counter()
            for done, frame in enumerate(frames, 1):
                yield frame
                rate = done / (time.perf_counter() - begun)
                bar.update(task, completed=done, rate=f"{rate:.1f} frames/s")

        yield advance()

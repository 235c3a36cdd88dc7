"""A progress bar of the steps of a generation, on a terminal's stderr only."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vkrt.engines.watch import StepInfo

__all__ = ["stepped"]


@contextmanager
def stepped() -> Iterator[Callable[[StepInfo], None] | None]:
    """Give what to call behind each step to advance a bar; None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
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
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        # How many steps there will be, the first one tells.
        task = bar.add_task("reading the prompt", total=None, rate="")
        begun = 0.0

        def advance(info: StepInfo) -> None:
            nonlocal begun
            now = time.perf_counter()
            # From the end of the first step, before which weights may have been loaded.
            begun = now if info.step <= 1 else begun
            rate = f"{(now - begun) / (info.step - 1):.2f} s/step" if info.step > 1 else ""
            what = "sampling" if info.step < info.steps else "decoding"
            bar.update(task, description=what, total=info.steps, completed=info.step, rate=rate)

        yield advance

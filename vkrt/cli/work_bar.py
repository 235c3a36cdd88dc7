"""What is being done while a command waits, and how far it is, on a terminal's stderr only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["working"]

# Of the bar.
STEPS = 1000


@contextmanager
def working(what: str) -> Iterator[Callable[[str, float], None] | None]:
    """Show what is being done; give what to call with that and the share that is done.

    A bar and the time left are shown from the first share above 0 on.

    Args:
        what: is being done at first.

    Yields:
        None where stderr is no terminal: then nothing is shown.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as RemainingColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        RemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)

        def report(now: str, share: float) -> None:
            total = STEPS if share > 0 else None
            bar.update(task, description=now, total=total, completed=share * STEPS)

        yield report

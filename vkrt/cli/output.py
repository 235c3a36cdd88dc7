"""What the commands print: JSON or a table on stdout, progress on a terminal's stderr only."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

__all__ = ["AsJson", "print_json", "print_table", "progress"]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, to stdout.")]


def print_json(value: Any) -> None:
    """Print a value as JSON; NaN and infinity, which JSON lacks, are refused."""
    # Where a character can't be shown, JSON's own escape of it stays JSON.
    escape = not (sys.stdout.encoding or "").lower().startswith("utf")
    print(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=escape))


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]], *fold: int) -> None:
    """Print rows under a header; where they are too wide, columns `fold` are folded, never cut."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(header))
    for index, name in enumerate(header):
        table.add_column(name, overflow="fold", no_wrap=index not in fold)
    for row in rows:
        # Text, because a file name may hold what rich reads as markup.
        table.add_row(*map(Text, row))
    Console().print(table)


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Show that something runs, where stderr is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield

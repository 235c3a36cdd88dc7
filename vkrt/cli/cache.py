"""`vkrt cache`: what the cache folder holds, and what of it is to go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vkrt.cli.output import AsJson, print_json, print_table
from vkrt.errors import OutputError, VkrtError

if TYPE_CHECKING:
    from vkrt.export.cache_entries import Entry

__all__ = ["clear", "list_cache"]

Name = Annotated[
    str | None,
    typer.Argument(
        metavar="NAME",
        help="What to delete: a name that `vkrt cache list` shows, or a model, for its bundles and "
        "failed exports.",
    ),
]
Refusals = Annotated[
    bool, typer.Option("--refusals", help="Forget failed exports, so that they are tried again.")
]
Everything = Annotated[
    bool, typer.Option("--all", help="Delete everything, fetched weights included.")
]


def list_cache(as_json: AsJson = False) -> None:
    """List bundles, fetched weights and failed exports, with sizes and when they were used last."""
    from vkrt.export.cache_entries import list_entries
    from vkrt.options import cache_folder

    cache = cache_folder()
    entries = list_entries(cache)
    total = sum(entry.bytes for entry in entries)
    if as_json:
        print_json({"cache": str(cache), "bytes": total, "entries": [describe(e) for e in entries]})
        return
    if entries:
        show(entries)
    print(f"{cache}: {megabytes(total)}")


def show(entries: Sequence[Entry]) -> None:
    """Print entries for a person."""
    print_table(
        ["kind", "model", "size", "used", "name"],
        [
            [entry.kind, entry.model or "-", megabytes(entry.bytes), day(entry.used), entry.name]
            for entry in entries
        ],
        4,
    )
    for entry in entries:
        if entry.kind == "refusal":
            print(f"{entry.model} was not exported: {entry.note}")


def describe(entry: Entry) -> dict[str, Any]:
    """Return an entry as JSON has it; `used` in seconds since 1970."""
    return {**asdict(entry), "path": str(entry.path)}


def megabytes(size: int) -> str:
    """Return a size as it is shown."""
    return f"{size / 1e6:.1f} MB"


def day(seconds: float) -> str:
    """Return a time as it is shown."""
    return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M}" if seconds else "-"


def clear(
    name: Name = None,
    refusals: Refusals = False,
    everything: Everything = False,
    as_json: AsJson = False,
) -> None:
    """Delete from the cache; what somebody makes, fetches or uses stays."""
    from vkrt.export.cache_entries import delete, list_entries
    from vkrt.options import cache_folder

    if [name is not None, refusals, everything].count(True) != 1:
        raise OutputError("say what to delete: NAME, --refusals or --all, one of them")
    entries = list_entries(cache_folder())
    if name is not None:
        chosen = named(entries, name)
    else:
        chosen = [entry for entry in entries if everything or entry.kind == "refusal"]
    stays = {entry.name: why for entry in chosen if (why := delete(entry))}
    gone = [entry for entry in chosen if entry.name not in stays]
    freed = sum(entry.bytes for entry in gone)
    if as_json:
        print_json({"deleted": [entry.name for entry in gone], "bytes": freed, "kept": stays})
        return
    for kept, why in stays.items():
        print(f"{kept} stays: {why}")
    print(f"{len(gone)} deleted, {megabytes(freed)}")


def named(entries: Sequence[Entry], name: str) -> list[Entry]:
    """Return the entry of a name, or what was exported of the model that is called so.

    Raises:
        OutputError: there is no such thing.
    """
    exact = [entry for entry in entries if entry.name == name]
    of_model = [e for e in entries if e.kind in ("bundle", "refusal") and is_of(e, name)]
    if not exact and not of_model:
        raise OutputError(f"the cache holds nothing called {name!r:.80}; see `vkrt cache list`")
    return exact or of_model


def is_of(entry: Entry, name: str) -> bool:
    """Tell whether an entry is of the model of a name."""
    from vkrt import catalog

    try:
        return entry.model == catalog.find(name).name
    except VkrtError:
        return entry.model == name

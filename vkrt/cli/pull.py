"""`vkrt pull`: fetch a model's official weights into the cache folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vkrt.cli.output import AsJson, print_json, progress
from vkrt.cli.work_bar import working
from vkrt.errors import BackendError

__all__ = ["pull"]


def pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name that `vkrt models` lists.")],
    cache: Annotated[
        Path | None, typer.Option(help="Folder of downloads; `vkrt doctor` shows the default.")
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Only look for the file, fetch nothing.")
    ] = False,
    export: Annotated[
        bool,
        typer.Option(
            "--export", help="Export it as well, into the cache, so that the first start is fast."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fetch a model's official weights, once, and print where they are; export them if asked to."""
    from vkrt import catalog
    from vkrt.weights import hub
    from vkrt.weights.family import find_sd35

    picture_model = find_sd35(name)
    if export and picture_model is not None:
        raise BackendError(f"{name} makes pictures: export it into a folder with `vkrt export`")
    known = catalog.picture_models()
    model = known[picture_model] if picture_model in known else catalog.find(name)
    with progress(f"fetching {model.name}"):
        path = hub.pull(model, cache=cache, offline=offline)
    report: dict[str, Any] = {
        "model": model.name,
        "file": str(path),
        "bytes": path.stat().st_size,
    }
    if export:
        report["bundle"] = str(export_weights(model.name, path, cache))
    if as_json:
        print_json(report)
    else:
        print(path)
        if export:
            print(report["bundle"])


def export_weights(name: str, weights: Path, cache: Path | None) -> Path:
    """Export what was fetched into the cache, and return the bundle's folder."""
    from vkrt.export.progress import ignore
    from vkrt.exporting import export_to_cache

    with working(f"exporting {name}") as report:
        return export_to_cache(name, weights, cache=cache, report=report or ignore).folder

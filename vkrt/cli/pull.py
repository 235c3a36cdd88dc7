"""`vkrt pull`: fetch a model's official weights into the cache folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vkrt.cli.output import AsJson, print_json, progress

__all__ = ["pull"]


def pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name that `vkrt models` lists.")],
    cache: Annotated[
        Path | None, typer.Option(help="Folder of downloads; `vkrt doctor` shows the default.")
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Only look for the file, fetch nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fetch a model's official weights, once, and print where they are."""
    from vkrt import catalog
    from vkrt.weights import hub
    from vkrt.weights.family import find_sd35

    picture_model = find_sd35(name)
    known = catalog.picture_models()
    model = known[picture_model] if picture_model in known else catalog.find(name)
    with progress(f"fetching {model.name}"):
        path = hub.pull(model, cache=cache, offline=offline)
    if as_json:
        print_json({"model": model.name, "file": str(path), "bytes": path.stat().st_size})
    else:
        print(path)

"""Load the model of a command that segments."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vkrt.cli.work_bar import working
from vkrt.errors import UnknownModelError

if TYPE_CHECKING:
    from vkrt.engines.sam2_image import Segmenter
    from vkrt.meant import Meant

__all__ = ["ExportFirst", "open_segmenter"]

ExportFirst = Annotated[
    bool,
    typer.Option(
        "--export",
        help="Export the checkpoint first, once, into the cache: later starts and calls are "
        "faster. It takes minutes.",
    ),
]


def open_segmenter(
    model: str, checkpoint: Path | None = None, export: bool = False, **settings: Any
) -> Segmenter:
    """Return a model of SAM 2; one that makes pictures is refused before anything is loaded.

    What is being done is shown on a terminal. A command is over too soon for an export beside it:
    there is one only if it was asked for, and else a line, once, on how to get it.

    Args:
        model, checkpoint, settings: as vkrt.load takes them.
        export: export the checkpoint first.

    Raises:
        UnknownModelError: it makes pictures.
        VkrtError: as vkrt.load.
    """
    import vkrt
    from vkrt.meant import understand
    from vkrt.options import default_export

    meant = understand(model, checkpoint)
    if meant.makes_pictures:
        raise UnknownModelError(
            f"{model} makes pictures and segments none; take a model of SAM 2, which "
            "`vkrt models` lists"
        )
    first = default_export() == "first"
    way = "first" if export else "auto" if first else "never"
    with working(f"loading {model}") as report:
        segmenter: Segmenter = vkrt.load(
            model,
            checkpoint=checkpoint,
            export=way,
            report=report,
            **settings,
        )
    if way == "never":
        advise(meant, **settings)
    return segmenter


def advise(meant: Meant, image_size: int | None = None, **settings: Any) -> None:
    """Say once of a checkpoint how to make the next start fast, if it can be."""
    from vkrt.export.file_records import first_time
    from vkrt.loading_sam2 import advice
    from vkrt.options import Options

    options = Options(**settings)
    found = advice(meant, image_size, options)
    if found is None:
        return
    weights, said = found
    if first_time(options.cache, weights, said):
        print(f"vkrt: {said}", file=sys.stderr)

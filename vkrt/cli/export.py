"""`vkrt export`: a checkpoint becomes a bundle, which runs without torch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vkrt.cli.output import AsJson, print_json, print_table, progress

if TYPE_CHECKING:
    from vkrt.bundle import Bundle

__all__ = ["export"]

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="A name that `vkrt models` lists, or a checkpoint.")
]
Checkpoint = Annotated[Path | None, typer.Option(help="Its weights, if not packaged or pulled.")]
Out = Annotated[Path, typer.Option(help="The folder to make; vkrt.load takes it.")]
Precision = Annotated[
    str, typer.Option(help="fp32, or fp16: half the size, arithmetic still in fp32.")
]
ImageSize = Annotated[
    int | None, typer.Option(help="Side of the model's input in pixels, a multiple of 32.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")]


def export(
    model: ModelName,
    out: Out,
    checkpoint: Checkpoint = None,
    precision: Precision = "fp32",
    image_size: ImageSize = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write a model as a bundle: a folder that runs on ONNX Runtime, without torch.

    Every stage is held against PyTorch on random inputs; a bundle that is off is not written.
    """
    from vkrt.loading import export_model

    start = time.perf_counter()
    with progress(f"exporting {model}"):
        bundle = export_model(
            model, out, checkpoint, precision=precision, image_size=image_size, force=force
        )
    report = describe(bundle, time.perf_counter() - start)
    if as_json:
        print_json(report)
    else:
        show(report)


def describe(bundle: Bundle, seconds: float) -> dict[str, Any]:
    """Return what was written, as JSON has it."""
    header = bundle.header
    return {
        "folder": str(bundle.folder),
        "model": header.model,
        "image_size": header.image_size,
        "precision": header.precision,
        "bytes": sum(bundle.bytes.values()),
        "files": dict(bundle.bytes),
        "parity": list(header.parity),
        "seconds": round(seconds, 1),
    }


def show(report: dict[str, Any]) -> None:
    """Print the report for a person."""
    print_table(
        ["stage", "output", "difference", "relative", "allowed"],
        [
            [
                figure["stage"],
                figure["output"],
                *(f"{figure[name]:.1e}" for name in ("max_abs", "max_relative", "allowed")),
            ]
            for figure in report["parity"]
        ],
        fold=0,
    )
    size = f"{report['model']} at {report['image_size']}, {report['precision']}"
    print(f"{report['folder']}: {size}, {report['bytes'] / 1e6:.1f} MB, {report['seconds']} s")

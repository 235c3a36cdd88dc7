"""`vkrt export`: a checkpoint becomes a bundle, which runs without torch."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vkrt.cli.generate_options import T5, ClipG, ClipL, ControlModel, TokenizerFolder, Vae
from vkrt.cli.output import AsJson, print_json, print_table
from vkrt.cli.work_bar import working

if TYPE_CHECKING:
    from vkrt.bundle import Bundle

__all__ = ["export"]

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="A name that `vkrt models` lists, or a checkpoint.")
]
Checkpoint = Annotated[Path | None, typer.Option(help="Its weights, if not packaged or pulled.")]
Out = Annotated[Path, typer.Option(help="The folder to make; vkrt.load takes it.")]
Precision = Annotated[
    str,
    typer.Option(
        help="fp32; fp16: half the size, arithmetic still in fp32; int8: image encoder of SAM 2 or "
        "transformer of Stable Diffusion in 8-bit integers, where that is faster on this CPU and "
        "near to fp32."
    ),
]
ImageSize = Annotated[
    int | None, typer.Option(help="Side of the model's input in pixels, a multiple of 32.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")]
Calibration = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="int8: photos such as it will see, besides procedural scenes."
    ),
]
PhotosOnly = Annotated[
    bool, typer.Option("--photos-only", help="Leave out what tracks through video: half the size.")
]
AllowLoss = Annotated[
    bool,
    typer.Option(
        "--allow-loss",
        help="int8: write it even if its masks agree with those of fp32 by less than IoU 0.98, or "
        "its latents by less than 30 dB, and keep every product that is faster in int8.",
    ),
]


# Why a product is computed as it is, by what the manifest calls it.
REASONS = {
    "faster": "it is faster than fp32 here",
    "not faster": "int8 is not faster here",
    "quality": "a faster form of int8 costs too much",
}
# What a product is computed in, by its form.
FORMS = {
    "fp32": "fp32",
    "static": "int8, static range",
    "dynamic": "int8, dynamic range",
    "rows": "int8, a range for each token",
    "blocks": "int8, a range for each 32 numbers",
}


def export(
    model: ModelName,
    out: Out,
    checkpoint: Checkpoint = None,
    precision: Precision = "fp32",
    image_size: ImageSize = None,
    force: Force = False,
    photos_only: PhotosOnly = False,
    calibration: Calibration = None,
    allow_loss: AllowLoss = False,
    clip_l: ClipL = None,
    clip_g: ClipG = None,
    t5: T5 = None,
    vae: Vae = None,
    tokenizers: TokenizerFolder = None,
    control_model: ControlModel = None,
    as_json: AsJson = False,
) -> None:
    """Write a model as a bundle: a folder that runs on ONNX Runtime, without torch.

    Every stage is held against PyTorch on random inputs; a bundle that is off is not written.
    In int8 its masks, on held-out scenes, or its latents are held against those of fp32 as well.
    """
    from vkrt.export.progress import ignore
    from vkrt.exporting import export_model

    given = {"clip_l": clip_l, "clip_g": clip_g, "t5": t5, "vae": vae}
    start = time.perf_counter()
    with working(f"exporting {model}") as report:
        bundle = export_model(
            model,
            out,
            checkpoint,
            precision=precision,
            image_size=image_size,
            force=force,
            photos_only=photos_only,
            calibration=calibration,
            allow_loss=allow_loss,
            encoders={part: path for part, path in given.items() if path is not None},
            tokenizers=tokenizers,
            control_model=control_model,
            report=report or ignore,
        )
    written = describe(bundle, time.perf_counter() - start)
    if as_json:
        print_json(written)
    else:
        show(written)


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
        "quantization": dict(header.quantization),
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
        0,
    )
    if report["quantization"]:
        show_quantization(report["quantization"])
    side = f" at {report['image_size']}" if report["image_size"] else ""
    what = f"{report['model']}{side}, {report['precision']}"
    print(f"{report['folder']}: {what}, {report['bytes'] / 1e6:.1f} MB, {report['seconds']} s")


def show_quantization(chosen: dict[str, Any]) -> None:
    """Print what int8 chose and what is lost by it."""
    counts = Counter((product["form"], product["reason"]) for product in chosen["products"])
    print_table(
        ["products", "computed in", "because"],
        [
            [str(count), FORMS[form], REASONS[reason]]
            for (form, reason), count in sorted(counts.items(), reverse=True)
        ],
        2,
    )
    if "latents" in chosen:
        show_latents(chosen)
        return
    masks, seen = chosen["masks"], chosen["calibration"]
    tracked = masks.get("track")  # older bundles say nothing of it
    told = "" if tracked is None else f" and {tracked:.4f} in {masks['clips']} tracked clips"
    print(
        f"masks against fp32: mean IoU {masks['iou']:.4f} (clicks {masks['click']:.4f}, boxes "
        f"{masks['box']:.4f}; {masks['masks']} masks on {masks['scenes']} held-out scenes){told}, "
        f"wanted {masks['wanted']}{', loss allowed' if masks['loss_allowed'] else ''}"
    )
    print(
        f"weights of {chosen['weight_bits']} bits, ranges from {seen['scenes']} scenes and "
        f"{seen['photos']} photos"
    )


def show_latents(chosen: dict[str, Any]) -> None:
    """Print what latents lose by int8, and what a step gains."""
    found = chosen["latents"]
    seconds = found["seconds"]
    print(
        f"latents against fp32: {found['psnr']:.1f} dB after {found['steps']} steps "
        f"({found['pictures']} prompts, {found['side']} pixels), velocities err by "
        f"{found['error']:.4f}; wanted {found['least_psnr']} dB and {found['most_error']}"
        f"{', loss allowed' if found['loss_allowed'] else ''}"
    )
    print(
        f"weights of {chosen['weight_bits']} bits; these steps take {seconds['int8']:.3g} s, in "
        f"fp32 {seconds['fp32']:.3g} s"
    )

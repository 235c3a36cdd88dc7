"""`vkrt segment`: one photo, objects named by clicks, boxes or masks; masks out."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vkrt.cli.output import AsJson, print_json, print_table, progress
from vkrt.cli.prompts import Prompts, parse_prompts
from vkrt.cli.segmenter import ExportFirst, open_segmenter
from vkrt.cli.targets import Targets, plan, save_picture

if TYPE_CHECKING:
    import numpy as np

__all__ = ["segment"]

# What SAM 2 proposes for one prompt: the whole, a part and a part of that, in no fixed order.
PROPOSALS = 3

Photo = Annotated[Path, typer.Argument(metavar="PHOTO", help="The photo.")]
ModelName = Annotated[str, typer.Option(help="A name that `vkrt models` lists, or a checkpoint.")]
Checkpoint = Annotated[Path | None, typer.Option(help="Its weights, if not packaged or pulled.")]
ImageSize = Annotated[
    int | None, typer.Option(help="Side of the model's input in pixels, a multiple of 32.")
]
Point = Annotated[
    list[str] | None, typer.Option(metavar="X,Y", help="A pixel on the object; repeatable.")
]
Negative = Annotated[
    list[str] | None, typer.Option(metavar="X,Y", help="A pixel not on it; repeatable.")
]
Box = Annotated[
    list[str] | None,
    typer.Option(
        metavar="X0,Y0,X1,Y1",
        help="A box around the object. Several are of several objects: OUT mask.png gives "
        "mask-0.png, mask-1.png, ... in their order; --point, --negative and --mask are then given "
        "once for each object, in the same order, or not at all.",
    ),
]
Mask = Annotated[
    list[Path] | None,
    typer.Option(
        help="A rough mask to refine: white on black, of the photo's size; several are of several "
        "objects, as with --box."
    ),
]
AllMasks = Annotated[
    bool,
    typer.Option(
        "--all-masks",
        help="Write all three proposals, best first: OUT mask.png gives "
        "mask-0.png, mask-1.png, mask-2.png; of several objects mask-0-0.png (object, proposal) "
        "and so on.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="The mask, a .png, white on the object. Without --out, --overlay and --json: "
        "PHOTO.mask.png in the current folder."
    ),
]
Overlay = Annotated[
    Path | None, typer.Option(help="The photo with mask and prompts drawn in (.png, .jpg, .webp).")
]
Threads = Annotated[
    int | None,
    typer.Option(
        help="CPU threads of the model, the resizing and the masks; one per core if not given "
        "(PyTorch: its own number)."
    ),
]
Backend = Annotated[
    str, typer.Option(help="auto, eager (PyTorch), or without PyTorch: onnx or openvino.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[str, typer.Option(help="auto, fp32, bf16, fp16 or int8.")]


def segment(
    photo: Photo,
    model: ModelName = "sam2.1-nano",
    checkpoint: Checkpoint = None,
    image_size: ImageSize = None,
    point: Point = None,
    negative: Negative = None,
    box: Box = None,
    mask: Mask = None,
    all_masks: AllMasks = False,
    out: Out = None,
    overlay: Overlay = None,
    as_json: AsJson = False,
    threads: Threads = None,
    backend: Backend = "auto",
    device: Device = "auto",
    precision: Precision = "auto",
    export: ExportFirst = False,
) -> None:
    """Segment objects of a photo, each named by clicks, a box or a rough mask."""
    from vkrt.media.image import read_image

    prompts = parse_prompts(point or [], negative or [], box or [], mask or [])
    targets = plan(photo, out, overlay, prompts.count, PROPOSALS if all_masks else 1, as_json)
    targets.check([path for path in (photo, *prompts.masks, checkpoint) if path is not None])
    pixels = read_image(photo)
    prompts.check(pixels.shape[:2])

    settings = {
        "backend": backend,
        "device": device,
        "precision": precision,
        "threads": threads,
        "export": export,
    }
    found = run(pixels, prompts, all_masks, (model, checkpoint, image_size), settings)
    write(pixels, prompts, found, targets)
    report = describe(photo, found, targets)
    if as_json:
        print_json(report)
    else:
        show(report)


def run(
    pixels: np.ndarray,
    prompts: Prompts,
    all_masks: bool,
    which: tuple[str, Path | None, int | None],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Load the model, encode the photo and predict, timing each.

    Returns:
        sam, result, order (for each object the masks to keep, best first) and ms.
    """
    name, checkpoint, image_size = which
    ms: dict[str, float] = {}
    with timed(ms, "load"):
        sam = open_segmenter(name, checkpoint=checkpoint, image_size=image_size, **settings)
    earlier = prompts.earlier(pixels.shape[:2], sam.config.mask_size)
    with progress("encoding the photo"), timed(ms, "encode"):
        embedding = sam.encode(pixels)
    # One click may mean a part or the whole, so the best of three answers it; more prompts don't.
    proposals = all_masks or prompts.ambiguous
    with timed(ms, "predict"):
        result = embedding.predict(
            prompts.points, prompts.labels, prompts.box, earlier, multimask=proposals
        )
    order = [rank(scores, all_masks) for scores in result.scores.reshape(prompts.count, -1)]
    return {"sam": sam, "result": result, "order": order, "ms": ms}


def rank(scores: np.ndarray, every: bool) -> list[int]:
    """Return the places of scores, the best first: of every one, or of the best alone."""
    ranked = sorted(range(len(scores)), key=lambda index: -scores[index])
    return ranked if every else ranked[:1]


@contextmanager
def timed(ms: dict[str, float], name: str) -> Iterator[None]:
    """Put the milliseconds that the block takes under `name`."""
    start = time.perf_counter()
    yield
    ms[name] = round((time.perf_counter() - start) * 1000, 1)


def write(pixels: np.ndarray, prompts: Prompts, found: dict[str, Any], targets: Targets) -> None:
    """Write the masks and the overlay that the targets name."""
    import numpy as np

    from vkrt.media.masks import write_mask
    from vkrt.media.overlay import draw_overlay

    order = found["order"]
    masks = found["result"].masks.reshape(len(order), -1, *pixels.shape[:2])
    kept = [masks[obj][index] for obj, places in enumerate(order) for index in places]
    for path, mask in zip(targets.masks, kept, strict=bool(targets.masks)):
        write_mask(path, mask)
    if targets.overlay is not None:
        # Of several objects the best mask each, so that a colour is an object.
        drawn = [masks[obj][places[0]] for obj, places in enumerate(order)]
        shown = np.stack(drawn if len(order) > 1 else kept)
        picture = draw_overlay(pixels, shown, prompts.points, prompts.labels, prompts.box)
        save_picture(targets.overlay, picture)


def describe(photo: Path, found: dict[str, Any], targets: Targets) -> dict[str, Any]:
    """Return what was done, as JSON has it.

    Objects are numbered from 0 in the order of their prompts; boxes are x, y, width, height in
    pixels.
    """
    sam, result = found["sam"], found["result"]
    order = [(obj, index) for obj, places in enumerate(found["order"]) for index in places]
    files: list[str | None] = [str(path) for path in targets.masks]
    files = files or [None] * len(order)
    height, width = result.masks.shape[-2:]
    by_object = {
        name: getattr(result, name).reshape(len(found["order"]), -1)
        for name in ("scores", "stability", "magnitude", "areas")
    }
    masks = result.masks.reshape(len(found["order"]), -1, height, width)
    return {
        "model": sam.name,
        "backend": sam.backend,
        "device": sam.device,
        "photo": {"file": str(photo), "width": width, "height": height},
        "masks": [
            {
                "file": file,
                "object": obj,
                "score": number(by_object["scores"][obj, index]),
                "stability": number(by_object["stability"][obj, index]),
                "magnitude": number(by_object["magnitude"][obj, index]),
                "area": int(by_object["areas"][obj, index]),
                "box": box_of(masks[obj, index]),
            }
            for file, (obj, index) in zip(files, order, strict=True)
        ],
        "overlay": None if targets.overlay is None else str(targets.overlay),
        "ms": found["ms"],
    }


def number(value: Any) -> float | None:
    """Return a float with four decimals; None for what JSON can't hold."""
    return round(float(value), 4) if math.isfinite(value) else None


def box_of(mask: np.ndarray) -> list[int] | None:
    """Return x, y, width, height of what is set in a mask (H, W) bool; None if nothing is."""
    import numpy as np

    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return None
    left, right, top, bottom = (int(v) for v in (*columns[[0, -1]], *rows[[0, -1]]))
    return [left, top, right - left + 1, bottom - top + 1]


def show(report: dict[str, Any]) -> None:
    """Print the report for a person."""
    photo, ms = report["photo"], report["ms"]
    print(f"{photo['file']}: {photo['width']}x{photo['height']}, {report['model']}", end="")
    print(f" on {report['device']} ({report['backend']})")
    print_table(
        ["mask", "score", "stability", "area", "box x,y,w,h"],
        [
            [
                mask["file"] or "(not written)",
                text(mask["score"]),
                text(mask["stability"]),
                f"{mask['area'] / (photo['width'] * photo['height']):.1%}",
                ",".join(map(str, mask["box"] or ["empty"])),
            ]
            for mask in report["masks"]
        ],
        0,
    )
    if report["overlay"]:
        print(f"overlay: {report['overlay']}")
    print(", ".join(f"{name} {value:g} ms" for name, value in ms.items()))


def text(value: float | None) -> str:
    """Return a score as it is shown."""
    return "-" if value is None else f"{value:.3f}"

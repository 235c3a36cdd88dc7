"""The demo: `python -m vkrt.demo` segments photos and scenes and tracks a clip, by sam2.1-nano."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

import vkrt
from vkrt.demo.reel import Reel, draw_strip, follow, middle, write_gif
from vkrt.demo.scenes import make_scene
from vkrt.demo.sheet import Tile, draw_sheet
from vkrt.media.files import write_atomically

__all__ = ["Example", "Results", "examples", "run"]

MODEL = "sam2.1-nano"
# Below the first seed that training draws from (vkrt.demo.train).
HELD_OUT_SEEDS = (3, 11, 24, 37)
SCENE_SIZE = 256
LEAST_AREA = 0.02


@dataclass(frozen=True)
class Example:
    """Hold a picture, what a user might ask on it and, for a scene, the right answer.

    Attributes:
        name: as shown on the sheet.
        image: (H, W, 3) uint8.
        point: x, y of a click.
        box: x0, y0, x1, y1.
        truth: (H, W) bool, or None where nobody knows.
    """

    name: str
    image: np.ndarray
    point: tuple[int, int]
    box: tuple[int, int, int, int]
    truth: np.ndarray | None = None


@dataclass(frozen=True)
class Results:
    """Name the files that a run wrote."""

    contact_sheet: Path
    tracked_clip: Path
    strip: Path
    timings: Path


@dataclass
class Answer:
    """Hold what the model said to one prompt, and how long it took."""

    kind: str
    mask: np.ndarray
    score: float
    milliseconds: float
    iou: float | None


@dataclass
class Report:
    """Gather the answers of one picture."""

    name: str
    encode_ms: float
    answers: list[Answer] = field(default_factory=list)


def photos() -> list[Example]:
    """Return four of the photos that come with scikit-image, with prompts set by hand.

    Raises:
        DownloadError: it is not installed.
    """
    try:
        from skimage import data
    except ImportError:
        raise vkrt.DownloadError(
            "the demo's photos come with scikit-image: run pip install 'vkrt[cpu,demo]'"
        ) from None

    return [
        Example("coffee", data.coffee(), (300, 170), (180, 18, 440, 270)),
        Example("chelsea", data.chelsea(), (215, 70), (60, 5, 345, 299)),
        Example("rocket", data.rocket(), (322, 200), (300, 60, 345, 365)),
        Example("astronaut", data.astronaut(), (225, 120), (70, 0, 370, 510)),
    ]


def scenes() -> list[Example]:
    """Return held-out procedural scenes, each with the prompts of its largest object."""
    found = []
    for seed in HELD_OUT_SEEDS:
        scene = make_scene(seed, SCENE_SIZE)
        truth = scene.labels == 1 + int(scene.areas().argmax())
        rows, columns = np.nonzero(truth)
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        corners = tuple(int(v) for v in box)
        found.append(Example(f"scene {seed}", scene.image, middle(truth), corners, truth))  # type: ignore[arg-type]
    return found


def examples() -> list[Example]:
    """Return every picture of the demo, photos first."""
    return photos() + scenes()


def timed(call: Any, *args: Any, **kwargs: Any) -> tuple[Any, float]:
    """Return what a call gives and how many milliseconds it took."""
    start = time.perf_counter()
    result = call(*args, **kwargs)
    return result, (time.perf_counter() - start) * 1e3


def overlap(mask: np.ndarray, truth: np.ndarray | None) -> float | None:
    """Return the IoU with the right answer, if it is known."""
    if truth is None:
        return None
    return float((mask & truth).sum() / max((mask | truth).sum(), 1))


def answer(embedding: vkrt.ImageEmbedding, example: Example, kind: str, **prompt: Any) -> Answer:
    """Return the best mask of a prompt."""
    out, milliseconds = timed(embedding.predict, **prompt)
    mask = out.masks[out.best]
    score = float(out.scores[out.best])
    return Answer(kind, mask, score, milliseconds, overlap(mask, example.truth))


def segment(sam: vkrt.Segmenter, example: Example) -> Report:
    """Return the answers to a click and to a box on one picture."""
    embedding, encode_ms = timed(sam.encode, example.image)
    report = Report(example.name, encode_ms)
    report.answers.append(answer(embedding, example, "click", points=[example.point]))
    report.answers.append(answer(embedding, example, "box", box=example.box, multimask=False))
    return report


def tiles(example: Example, report: Report) -> list[Tile]:
    """Return the row of the sheet for one picture: it with its prompts, then each answer."""
    size = f"{example.image.shape[1]}x{example.image.shape[0]}"
    row = [Tile(f"{example.name}, {size}", example.image, points=[example.point], box=example.box)]
    for given in report.answers:
        caption = f"{given.kind}: score {given.score:.2f}"
        if given.iou is not None:
            caption += f", IoU {given.iou:.2f}"
        prompt: dict[str, Any] = (
            {"points": [example.point]} if given.kind == "click" else {"box": example.box}
        )
        row.append(Tile(caption, example.image, mask=given.mask, **prompt))
    return row


def as_json(load_ms: float, sam: vkrt.Segmenter, reports: list[Report], reel: Reel) -> Any:
    """Return the timings and scores of a run."""
    pictures = [
        {
            "name": report.name,
            "encode_ms": round(report.encode_ms, 2),
            "prompts": [
                {
                    "kind": given.kind,
                    "ms": round(given.milliseconds, 2),
                    "score": round(given.score, 4),
                    "iou": None if given.iou is None else round(given.iou, 4),
                }
                for given in report.answers
            ],
        }
        for report in reports
    ]
    clip = {
        "frames": len(reel.frames),
        "objects": len(reel.points),
        "fps": round(reel.frames_a_second, 2),
        "iou": [round(float(overlap), 4) for overlap in reel.overlaps().mean(axis=0)],
    }
    return {
        "model": sam.name,
        "backend": sam.backend,
        "device": sam.device,
        "load_ms": round(load_ms, 1),
        "pictures": pictures,
        "clip": clip,
    }


def run(out: Path, checkpoint: Path | None = None) -> Results:
    """Segment every example, track the clip, and say which files show it."""
    out.mkdir(parents=True, exist_ok=True)
    sam, load_ms = timed(vkrt.load, MODEL, checkpoint)
    reports, rows = [], []
    for example in examples():
        reports.append(segment(sam, example))
        rows.append(tiles(example, reports[-1]))
    reel = follow(sam)
    results = Results(
        contact_sheet=out / "contact-sheet.png",
        tracked_clip=out / "tracked.gif",
        strip=out / "tracked-strip.png",
        timings=out / "timings.json",
    )
    sheet, strip = draw_sheet(rows, per_row=2), draw_strip(reel)
    write_atomically(results.contact_sheet, lambda file: sheet.save(file, "PNG"))
    write_gif(reel, results.tracked_clip)
    write_atomically(results.strip, lambda file: strip.save(file, "PNG"))
    text = json.dumps(as_json(load_ms, sam, reports, reel), indent=2) + "\n"
    write_atomically(results.timings, lambda file: file.write(text.encode()))
    return results


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("out/demo"),
    checkpoint: Annotated[Path | None, typer.Option(help="Other weights of the model.")] = None,
) -> None:
    """Segment photos and held-out scenes, and track a held-out clip, with the demo model."""
    console = Console()
    start = time.perf_counter()
    try:
        results = run(out, checkpoint)
    except vkrt.VkrtError as error:
        # Without markup, which would swallow the [extras] of a command.
        Console(stderr=True).print(f"vkrt: {error}", soft_wrap=True, highlight=False, markup=False)
        raise typer.Exit(2) from None
    seconds = time.perf_counter() - start
    console.print(f"segmented and tracked in {seconds:.1f} s", highlight=False)
    for label, path in asdict(results).items():
        name = label.replace("_", " ")
        console.print(f"{name}: {path.resolve()}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    typer.run(main)

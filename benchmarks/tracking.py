"""Tracking of held-out clips: `python -m benchmarks.tracking`. Exits with 1 below the bar.

In each clip one object is tracked through the public interface: a click in the middle of it on
the first frame, and nothing after that. As that click is all that the model is given, the first
frame counts too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

import vkrt
from benchmarks.clicks import deepest
from benchmarks.jf import contour_agreement, region_overlap
from benchmarks.machine import commit, today
from benchmarks.quality import digest
from benchmarks.results import TRACKING, TrackingRow, append_rows, check_columns
from vkrt import Segmenter, VkrtError, catalog
from vkrt.demo.clips import Clip, choose_target, make_clip
from vkrt.demo.train import FIRST_TRAINING_SEED
from vkrt.weights.hub import pull

__all__ = ["BARS", "Judged", "Task", "evaluate", "follow", "held_out"]

SIDE = 256  # pixels of a frame
OBJECT = 1
BARS: dict[str, float | None] = {"J": None, "F": None, "J&F": 0.75}


@dataclass(frozen=True)
class Task:
    """Hold a held-out clip, its seed, and the label of the object that is to be tracked."""

    seed: int
    clip: Clip
    target: int


@dataclass(frozen=True)
class Judged:
    """Hold J and F of each frame of a clip, (T,) each."""

    overlap: np.ndarray
    agreement: np.ndarray

    def means(self) -> dict[str, float]:
        """Return the clip's mean of each measure."""
        j, f = float(self.overlap.mean()), float(self.agreement.mean())
        return {"J": j, "F": f, "J&F": (j + f) / 2}


def held_out(frames: int) -> Iterator[Task]:
    """Give the clips that training never sees and that have an object to judge by."""
    for seed in range(FIRST_TRAINING_SEED):
        clip = make_clip(seed, SIDE, frames)
        target = choose_target(clip, seed)
        if target is not None:
            yield Task(seed, clip, target)


def follow(sam: Segmenter, task: Task) -> Judged:
    """Track the target from a click in its middle on, and judge every frame."""
    stream = sam.stream()
    wanted = task.clip.labels == task.target
    x, y, _ = deepest(wanted[0])
    prompts = [vkrt.Prompt(obj=OBJECT, points=[[x, y]], labels=[1])]
    overlap, agreement = [], []
    for image, truth in zip(task.clip.frames, wanted, strict=True):
        shown = stream.step(image, prompts=prompts).masks[0]
        overlap.append(region_overlap(shown, truth))
        agreement.append(contour_agreement(shown, truth))
        prompts = []
    return Judged(np.array(overlap), np.array(agreement))


def evaluate(sam: Segmenter, clips: int, frames: int) -> tuple[list[Judged], int]:
    """Return what was judged of so many clips, and how many others had no object to track."""
    judged, last = [], -1
    hidden = not sys.stderr.isatty()
    console = Console(stderr=True)
    tasks = islice(held_out(frames), clips)
    for task in track(tasks, "held-out clips", total=clips, console=console, disable=hidden):
        judged.append(follow(sam, task))
        last = task.seed
    return judged, last + 1 - len(judged)


def make_rows(
    sam: Segmenter, checkpoint: Path, judged: list[Judged], skipped: int
) -> list[TrackingRow]:
    """Return a row for each measure."""
    means = [one.means() for one in judged]
    rows, now, where = [], today(), commit()
    for measure, bar in BARS.items():
        values = [mean[measure] for mean in means]
        rows.append(
            TrackingRow(
                date=now,
                commit=where,
                model=sam.name,
                checkpoint=digest(checkpoint),
                image_size=sam.config.image_size,
                clips=len(values),
                skipped=skipped,
                frames=len(judged[0].overlap),
                measure=measure,
                mean=float(np.mean(values)),
                p10=float(np.percentile(values, 10)),
                median=float(np.median(values)),
                bar=bar,
            )
        )
    return rows


def is_below(row: TrackingRow) -> bool:
    """Return whether a row misses its bar."""
    return row.bar is not None and not row.mean >= row.bar


def show(rows: list[TrackingRow]) -> None:
    """Print the rows as a table."""
    first = rows[0]
    table = Table(
        title=f"{first.model} ({first.checkpoint}) at {first.image_size}: {first.clips} held-out "
        f"clips of {first.frames} frames, one click each, {first.skipped} skipped"
    )
    for name in ("measure", "mean", "p10", "median", "bar", ""):
        table.add_column(name, justify="left" if name == "measure" else "right")
    for row in rows:
        bar = "" if row.bar is None else f"{row.bar:.2f}"
        verdict = "" if row.bar is None else "below" if is_below(row) else "reached"
        means = (f"{value:.3f}" for value in (row.mean, row.p10, row.median))
        table.add_row(row.measure, *means, bar, verdict)
    Console(width=None if sys.stdout.isatty() else 100).print(table)


def main(
    model: Annotated[str, typer.Option(help="Catalog name.")] = "sam2.1-nano",
    checkpoint: Annotated[Path | None, typer.Option(help="Weights; None: the model's own.")] = None,
    clips: Annotated[int, typer.Option(min=1, help="Held-out clips.")] = 100,
    frames: Annotated[int, typer.Option(min=2, help="Frames a clip.")] = 32,
    dry: Annotated[bool, typer.Option("--dry", help="Do not write tracking.csv.")] = False,
) -> None:
    """Measure how well a model tracks through held-out clips."""
    try:
        if not dry:
            check_columns(TRACKING, TrackingRow)
        source = checkpoint or pull(catalog.find(model), offline=True)
        sam = vkrt.load(model, source, embedding_cache_bytes=0, export="first")
        judged, skipped = evaluate(sam, clips, frames)
    except (ValueError, VkrtError) as error:
        print(f"benchmarks.tracking: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    rows = make_rows(sam, source, judged, skipped)
    show(rows)
    if not dry:
        append_rows(TRACKING, rows)
    raise typer.Exit(int(any(map(is_below, rows))))


if __name__ == "__main__":
    typer.run(main)

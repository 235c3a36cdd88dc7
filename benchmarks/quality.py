"""Quality on held-out scenes: `python -m benchmarks.quality`. Exits with 1 below a bar.

In each scene one object is segmented through the public interface, as a patient user would: a
click in the middle of what is visible of it, then two corrections, and apart from that its box.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

import vkrt
from benchmarks.clicks import correction, deepest
from benchmarks.machine import commit, today
from benchmarks.results import QUALITY, QualityRow, append_rows, check_columns
from vkrt import ImageEmbedding, Masks, Segmenter, VkrtError, catalog
from vkrt.demo.scenes import Scene, make_scene
from vkrt.demo.train import FIRST_TRAINING_SEED
from vkrt.export.int8.gate import box_of, mask_iou
from vkrt.weights.hub import pull

__all__ = ["BARS", "Score", "ask_all", "choose_object", "evaluate", "held_out"]

SIDE = 256  # pixels of a scene
MIN_SHARE = 0.005  # of the picture that an object must cover visibly
CLICKS = 3
BARS: dict[str, float | None] = {
    "one click": 0.80,
    "one click, ideal choice": None,
    "three clicks": 0.88,
    "box": 0.88,
}


@dataclass(frozen=True)
class Score:
    """Hold the IoU of an answer, and what the model predicted it to be, if it chose."""

    iou: float
    predicted: float | None = None


def held_out(scenes: int) -> range:
    """Return the seeds of the scenes that training never sees.

    Raises:
        ValueError: there are not so many.
    """
    if not 0 < scenes <= FIRST_TRAINING_SEED:
        raise ValueError(f"scenes must be from 1 to {FIRST_TRAINING_SEED}, not {scenes}")
    return range(scenes)


def choose_object(scene: Scene, seed: int) -> np.ndarray | None:
    """Return the visible mask (H, W) bool of one object that is large enough; None without one."""
    large = np.flatnonzero(scene.areas() >= MIN_SHARE * scene.labels.size) + 1
    if not len(large):
        return None
    return scene.labels == np.random.default_rng(seed).choice(large)


def score(answer: Masks, wanted: np.ndarray) -> Score:
    """Return the score of the mask that the model itself holds to be the best."""
    best = answer.best
    return Score(mask_iou(answer.masks[best], wanted), float(answer.scores[best]))


def ask_clicks(embedding: ImageEmbedding, wanted: np.ndarray) -> dict[str, Score]:
    """Click, then correct with all clicks so far and the previous logits."""
    x, y, _ = deepest(wanted)
    points, labels = [[x, y]], [1]
    answer = embedding.predict(points=points, labels=labels, multimask=True)
    first = score(answer, wanted)
    ideal = Score(max(mask_iou(mask, wanted) for mask in answer.masks))
    for _ in range(CLICKS - 1):
        click = correction(answer.masks[answer.best], wanted)
        if click is None:
            break
        points.append([click[0], click[1]])
        labels.append(click[2])
        previous = answer.logits[answer.best]
        answer = embedding.predict(points=points, labels=labels, mask=previous, multimask=False)
    return {
        "one click": first,
        "one click, ideal choice": ideal,
        "three clicks": score(answer, wanted),
    }


def ask_all(embedding: ImageEmbedding, wanted: np.ndarray) -> dict[str, Score]:
    """Return the score of each kind of prompt for one object (H, W) bool."""
    boxed = embedding.predict(box=box_of(wanted), multimask=False)
    return {**ask_clicks(embedding, wanted), "box": score(boxed, wanted)}


def evaluate(sam: Segmenter, seeds: range) -> tuple[dict[str, list[Score]], int]:
    """Return the scores of each kind of prompt, and how many scenes had no object to ask for."""
    scores: dict[str, list[Score]] = {kind: [] for kind in BARS}
    skipped = 0
    hidden = not sys.stderr.isatty()
    console = Console(stderr=True)
    for seed in track(seeds, "held-out scenes", console=console, disable=hidden):
        scene = make_scene(seed, SIDE)
        wanted = choose_object(scene, seed)
        if wanted is None:
            skipped += 1
            continue
        for kind, one in ask_all(sam.encode(scene.image), wanted).items():
            scores[kind].append(one)
    return scores, skipped


def calibration(scores: list[Score]) -> float | None:
    """Return the mean |predicted - actual| IoU, or None where nothing was predicted."""
    errors = [abs(s.predicted - s.iou) for s in scores if s.predicted is not None]
    return float(np.mean(errors)) if errors else None


def digest(checkpoint: Path) -> str:
    """Return the start of the SHA-256 of a checkpoint, a file or a folder with weights."""
    files = [checkpoint] if checkpoint.is_file() else sorted(checkpoint.glob("*.safetensors"))
    found = hashlib.sha256()
    for file in files:
        found.update(file.read_bytes())
    return found.hexdigest()[:16]


def make_rows(
    model: str, checkpoint: Path, scores: dict[str, list[Score]], skipped: int
) -> list[QualityRow]:
    """Return a row for each kind of prompt."""
    rows, now, where = [], today(), commit()
    for kind, bar in BARS.items():
        values = [s.iou for s in scores[kind]]
        rows.append(
            QualityRow(
                date=now,
                commit=where,
                model=model,
                checkpoint=digest(checkpoint),
                scenes=len(values),
                skipped=skipped,
                kind=kind,
                mean=float(np.mean(values)),
                p10=float(np.percentile(values, 10)),
                median=float(np.median(values)),
                calibration=calibration(scores[kind]),
                bar=bar,
            )
        )
    return rows


def is_below(row: QualityRow) -> bool:
    """Return whether a row misses its bar."""
    return row.bar is not None and not row.mean >= row.bar


def show(rows: list[QualityRow]) -> None:
    """Print the rows as a table."""
    first = rows[0]
    table = Table(
        title=f"{first.model} ({first.checkpoint}): IoU on {first.scenes} held-out scenes, "
        f"{first.skipped} skipped"
    )
    for name in ("prompt", "mean", "p10", "median", "score off by", "bar", ""):
        table.add_column(name, justify="left" if name == "prompt" else "right")
    for row in rows:
        off = "" if row.calibration is None else f"{row.calibration:.3f}"
        bar = "" if row.bar is None else f"{row.bar:.2f}"
        verdict = "" if row.bar is None else "below" if is_below(row) else "reached"
        means = (f"{value:.3f}" for value in (row.mean, row.p10, row.median))
        table.add_row(row.kind, *means, off, bar, verdict)
    Console(width=None if sys.stdout.isatty() else 100).print(table)


def main(
    model: Annotated[str, typer.Option(help="Catalog name.")] = "sam2.1-nano",
    checkpoint: Annotated[Path | None, typer.Option(help="Weights; None: the model's own.")] = None,
    scenes: Annotated[int, typer.Option(help="Held-out scenes.")] = 500,
    dry: Annotated[bool, typer.Option("--dry", help="Do not write quality.csv.")] = False,
) -> None:
    """Measure the quality of a model on held-out scenes."""
    try:
        seeds = held_out(scenes)
        if not dry:
            check_columns(QUALITY, QualityRow)
        source = checkpoint or pull(catalog.find(model), offline=True)
        sam = vkrt.load(model, source, embedding_cache_bytes=0, export="first")
        scores, skipped = evaluate(sam, seeds)
        if not scores["box"]:
            raise ValueError(f"none of {scenes} scenes has an object large enough: ask for more")
    except (ValueError, VkrtError) as error:
        print(f"benchmarks.quality: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    rows = make_rows(sam.name, source, scores, skipped)
    show(rows)
    if not dry:
        append_rows(QUALITY, rows)
    raise typer.Exit(int(any(map(is_below, rows))))


if __name__ == "__main__":
    typer.run(main)

"""Memory over long videos: `python -m benchmarks.endurance`. Exits with 1 where it grows.

The stream gets frames one by one, the clip is tracked from its first frame to its last. Each runs
in a process of its own, and what that holds is read all along.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

import vkrt
from benchmarks.clicks import deepest
from benchmarks.machine import commit, describe_machine, today
from benchmarks.results import ENDURANCE, EnduranceRow, append_rows, check_columns
from benchmarks.rss import rss_mib
from vkrt import VkrtError, catalog
from vkrt.demo.clips import make_clip
from vkrt.weights.hub import pull

__all__ = ["CASES", "Task", "main", "watch"]

SIDE = 256  # pixels of a frame
SCENES = 8  # frames of the procedural clip that are shown over and over, moved each time
SEED = 0
OBJECTS = 3
EVERY = 20  # frames between two readings
WARM_UP = 0.2  # of the frames, in which buffers and caches are still taken
MOST_GROWTH_MIB = 1e6 / 2**20  # over all the frames behind them


@dataclass(frozen=True)
class Task:
    """Say what a process is to do.

    Attributes:
        case: one of CASES.
        frames: how many.
        weights: file of the model's weights, "" for its own.
        image_size: side of the model's input, in pixels.
    """

    case: str
    model: str
    weights: str
    image_size: int
    backend: str
    frames: int


def endless(count: int) -> Iterator[np.ndarray]:
    """Give frames (H, W, 3) uint8, no two the same: those of a clip, rolled further each time."""
    clip = make_clip(SEED, SIDE, SCENES)
    for index in range(count):
        turn = index // SCENES
        yield np.roll(clip.frames[index % SCENES], (turn % SIDE, turn // SIDE), axis=(1, 0))


def prompts() -> list[vkrt.Prompt]:
    """Return a click in the middle of each of the largest objects of the first frame."""
    clip = make_clip(SEED, SIDE, SCENES)
    largest = np.argsort(-clip.areas()[0], kind="stable")[:OBJECTS] + 1
    spots = [deepest(clip.labels[0] == label)[:2] for label in largest]
    return [vkrt.Prompt(obj=n, points=[[x, y]]) for n, (x, y) in enumerate(spots, start=1)]


def streamed(sam: vkrt.Segmenter, count: int) -> Iterator[object]:
    """Step a stream through the frames."""
    stream, asked = sam.stream(), prompts()
    for frame in endless(count):
        yield stream.step(frame, asked)
        asked = []


def tracked(sam: vkrt.Segmenter, count: int) -> Iterator[object]:
    """Track through the frames as a clip that is read as it goes."""
    with sam.track(endless(count)) as track:
        for prompt in prompts():
            track.prompt(frame=0, obj=prompt.obj, points=prompt.points)
        yield from track.propagate()


CASES: dict[str, Callable[[vkrt.Segmenter, int], Iterator[object]]] = {
    "stream": streamed,
    "track": tracked,
}


def watch(task: Task) -> tuple[list[tuple[int, float]], float]:
    """Return the frames done and the MiB held at each reading, and the seconds a frame."""
    weights = task.weights or pull(catalog.find(task.model), offline=True)
    sam = vkrt.load(
        task.model,
        weights,
        backend=task.backend,
        image_size=task.image_size,
        embedding_cache_bytes=0,
    )
    readings: list[tuple[int, float]] = []
    start = time.perf_counter()
    for done, _ in enumerate(CASES[task.case](sam, task.frames), start=1):
        if done % EVERY == 0:
            gc.collect()
            held = rss_mib()
            if held is None:
                raise VkrtError("this system does not tell how much memory a process holds")
            readings.append((done, held))
    return readings, (time.perf_counter() - start) / task.frames


def run_apart(task: Task) -> tuple[list[tuple[int, float]], float]:
    """Watch in a new process."""
    command = [sys.executable, "-m", "benchmarks.endurance", "--job", json.dumps(task.__dict__)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    readings, seconds = json.loads(done.stdout)
    return [(int(frame), float(held)) for frame, held in readings], float(seconds)


def judge(task: Task, readings: list[tuple[int, float]], seconds: float) -> EnduranceRow:
    """Return the row of a case: growth is the rise of a straight line through the readings."""
    first = WARM_UP * task.frames
    frames, held = np.array([reading for reading in readings if reading[0] > first]).T
    slope, _ = np.polyfit(frames, held, 1)
    machine = describe_machine()
    return EnduranceRow(
        date=today(),
        commit=commit(),
        cpu=machine["cpu"],
        threads=machine["cores"],
        case=task.case,
        model=task.model,
        image_size=task.image_size,
        backend=task.backend,
        frames=task.frames,
        objects=OBJECTS,
        ms_a_frame=seconds * 1e3,
        rss_mib=float(np.median(held)),
        lowest_mib=float(held.min()),
        highest_mib=float(held.max()),
        growth_mib=float(slope * (frames[-1] - first)),
        bar=MOST_GROWTH_MIB,
    )


def show(rows: list[EnduranceRow]) -> None:
    """Print the rows as a table."""
    table = Table(title=f"{OBJECTS} objects; memory after the first {WARM_UP:.0%} of the frames")
    whose = ("case", "model", "size", "backend", "frames")
    for name in (*whose, "ms", "MiB", "from", "to", "growth", "bar"):
        table.add_column(name, justify="right")
    for row in rows:
        figures = (row.ms_a_frame, row.rss_mib, row.lowest_mib, row.highest_mib)
        rise = (f"{row.growth_mib:+.3f}", f"{row.bar:.3f}")
        names = (row.case, row.model, str(row.image_size), row.backend, str(row.frames))
        table.add_row(*names, *(f"{figure:.1f}" for figure in figures), *rise)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def main(
    model: Annotated[str, typer.Option(help="Catalog name.")] = "sam2.1-nano",
    weights: Annotated[str, typer.Option(help="Weights; none: the model's own.")] = "",
    image_size: Annotated[int | None, typer.Option(help="Side of the model's input.")] = None,
    backend: Annotated[str, typer.Option(help="As vkrt.load takes it.")] = "onnx",
    stream: Annotated[int, typer.Option(min=0, help="Frames of the stream; 0: none.")] = 10_000,
    track: Annotated[int, typer.Option(min=0, help="Frames of the clip; 0: none.")] = 2_000,
    dry: Annotated[bool, typer.Option("--dry", help="Do not write endurance.csv.")] = False,
    job: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure whether tracking keeps its memory constant over thousands of frames."""
    if job:
        print(json.dumps(watch(Task(**json.loads(job)))))
        return
    counts = {"stream": stream, "track": track}
    try:
        if not dry:
            check_columns(ENDURANCE, EnduranceRow)
        side = catalog.find(model, image_size).config.image_size
        tasks = [Task(c, model, weights, side, backend, n) for c, n in counts.items() if n]
        rows = [judge(task, *run_apart(task)) for task in tasks]
    except (ValueError, VkrtError) as error:
        print(f"benchmarks.endurance: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except subprocess.CalledProcessError:
        # The process itself has said why.
        raise typer.Exit(2) from None
    show(rows)
    if not dry:
        append_rows(ENDURANCE, rows)
    raise typer.Exit(int(any(row.growth_mib > row.bar for row in rows)))


if __name__ == "__main__":
    typer.run(main)

"""Speed of the C++ pre- and post-processing against its stand-ins: `python -m benchmarks.media`.

Each case is checked first: both sides must agree, or nothing is timed. Then both run in the same
rounds. Nothing is written to a file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.measure import compare, measure, summarize
from vkrt.cli.doctor import cpu_model
from vkrt.media import fallback, native
from vkrt.options import usable_cores

__all__ = ["Case", "agree", "make_cases"]

WIDTH, HEIGHT = 1800, 1200  # of the photo
SIDE, INPUT = 256, 1024  # of the decoder's masks and of the encoder's input
NEAR = 1e-3  # of values from 0 to 255: resized pixels are sums in another order


@dataclass(frozen=True)
class Case:
    """Say what is timed.

    Attributes:
        name: of the operation, and on what.
        run: does it once with the given operations, native or stand-in.
        bytes: what it has to read and write at least, or little more.
    """

    name: str
    run: Callable[[Any], Any]
    bytes: int


def object_logits(count: int) -> np.ndarray:
    """Return (count, SIDE, SIDE) float32 as a decoder gives them: an object with a soft edge."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
    edges = 0.15 + 0.1 * np.arange(count)[:, None, None]
    angle = np.arctan2(y, x)
    inside = edges * (1 + 0.2 * np.sin(5 * angle)) - np.hypot(x, y)
    noise = rng.normal(0, 0.2, inside.shape)
    return (15 * np.tanh(8 * inside) + noise).astype(np.float32)


def random_boxes(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes (count, 4) and scores (count,), both float32."""
    rng = np.random.default_rng(6)
    corners = rng.random((count, 2)) * (WIDTH - 300, HEIGHT - 300)
    boxes = np.concatenate([corners, corners + rng.random((count, 2)) * 300], axis=1)
    return boxes.astype(np.float32), rng.random(count).astype(np.float32)


def make_cases(threads: int) -> list[Case]:
    """Return every case, its inputs made once."""
    rng = np.random.default_rng(7)
    photo = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    boxes, scores = random_boxes(3000)
    unit, none = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)
    return [
        Case(
            "resize",
            lambda part: part.resize(photo, INPUT, unit, none, None, threads),
            photo.nbytes + 12 * INPUT**2,
        ),
        *mask_cases(object_logits(3), threads),
        Case("thin out 3000 boxes", lambda part: part.nms(boxes, scores, 0.7), boxes.nbytes),
    ]


def mask_cases(logits: np.ndarray, threads: int) -> list[Case]:
    """Return what is done with masks; noise is the worst that logits can be."""
    noise = np.random.default_rng(8).normal(0, 2, logits.shape).astype(np.float32)
    masks = fallback.binarize(logits, HEIGHT, WIDTH, 0.0, 1.0)[0]
    runs = fallback.encode_masks(masks)
    size = (HEIGHT, WIDTH)
    how = (*size, 0.0, 1.0, threads)
    few, many = logits.nbytes, logits.nbytes + masks.nbytes
    return [
        Case("binarize 3", lambda part: part.binarize(logits, *how), many),
        Case("binarize 3 of noise", lambda part: part.binarize(noise, *how), many),
        Case("binarize 3, packed", lambda part: part.binarize(logits, *how, True), few),
        Case("run lengths of 3", lambda part: part.encode_logits(logits, *how), few),
        Case("encode 3 masks", lambda part: part.encode_masks(masks, threads), masks.nbytes),
        Case("decode 3 masks", lambda p: p.decode_masks(runs, *size, threads), masks.nbytes),
    ]


def agree(one: Any, other: Any) -> bool:
    """Tell whether two results are the same; resized photos, whether they are nearly."""
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(agree, one, other))
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.ndim == 3 and one.dtype == np.float32:
        return bool(np.abs(one - other).max() < NEAR)
    return bool(np.array_equal(one, other))


def time_case(case: Case, rounds: int) -> list[str]:
    """Return the cells of a case's row."""
    samples = measure(
        {
            "native": lambda: case.run(native.operations),
            "stand-in": lambda: case.run(fallback),
        },
        rounds,
    )
    ours, theirs = summarize(samples["native"]), summarize(samples["stand-in"])
    return [
        case.name,
        *(f"{ms:.2f}" for ms in (ours.p20, ours.p50, ours.p80)),
        f"{case.bytes / ours.p50 / 1e6:.2f}",
        f"{theirs.p50:.1f}",
        f"{compare(samples['stand-in'], samples['native']).of_medians:.1f}",
    ]


def leave(why: str, code: int) -> typer.Exit:
    """Print a line and return what ends the command."""
    print(f"benchmarks.media: {why}", file=sys.stderr)
    return typer.Exit(code)


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each side.")] = 15,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 is one per core.")] = 0,
) -> None:
    """Measure the C++ part against its stand-ins."""
    if not native.available():
        raise leave(str(native.why_missing()), 2)
    table = Table(title=f"{WIDTH}x{HEIGHT} photo, {cpu_model()}, {usable_cores()} cores")
    for name in ("case", "p20 ms", "p50 ms", "p80 ms", "GB/s", "stand-in p50 ms", "x"):
        table.add_column(name, justify="left" if name == "case" else "right")
    for case in make_cases(threads):
        if not agree(case.run(native.operations), case.run(fallback)):
            raise leave(f"{case.name} is not timed, because it differs from its stand-in", 1)
        table.add_row(*time_case(case, rounds))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    typer.run(main)

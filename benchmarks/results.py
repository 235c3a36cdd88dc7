"""Rows of measurements, appended to CSV files whose columns are fixed."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

__all__ = [
    "BARS",
    "ENDURANCE",
    "QUALITY",
    "RESULTS",
    "TRACKING",
    "BarRow",
    "EnduranceRow",
    "QualityRow",
    "SpeedRow",
    "TrackingRow",
    "append_rows",
    "check_columns",
    "columns",
    "read_rows",
]

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results.csv"
QUALITY = FOLDER / "quality.csv"
BARS = FOLDER / "bars.csv"
TRACKING = FOLDER / "tracking.csv"
ENDURANCE = FOLDER / "endurance.csv"


@dataclass(frozen=True)
class SpeedRow:
    """Hold one measurement of one variant. What a case does not measure is empty.

    Attributes:
        date: of the run, UTC.
        commit: of the checkout, "-dirty" if its sources were changed.
        case: "encode" (photo in, embedding out), "click" (click in, full-size masks out), "cold"
            (a new process to its first masks, files in the page cache) and its parts
            "cold-start" (the interpreter), "cold-import", "cold-load", "cold-encode" and
            "cold-predict", "memory" (a process that loads and encodes twice) and its part
            "memory-encode" (from when all is loaded), "growth" (a process that encodes fresh
            photos, vkrt's without its embedding cache, which has a bound of its own).
        photo: its width x height in pixels.
        variant: what ran, a name of benchmarks.variants.
        cores: usable ones, and `threads` of whatever runs the model.
        p99_ms: where there are samples enough for it.
        samples: rounds, all variants interleaved; in "memory" processes, in "growth" encodes.
        baseline: the variant of vkrt that the ratios refer to; "vkrt" where a row has none.
        ratio_to_vkrt: p50 over the baseline's p50 of the same run.
        paired_ratio: median over the rounds of the ratio to the baseline, with p20 and p80.
        peak_rss_mib: of the process, the median of several in "memory".
        rss_growth_mib: of the process over the encodes, after others that warmed it up.
        gflops: arithmetic of matrix products and convolutions, as many as this variant's form of
            the model has, over p50.
        peak_gflops: of a matrix product, 1024 x 4096 by 4096 x 1024, by the runtime and in the
            precision of this row, so that gflops over it is the share that the model reaches;
            the best of ten in the same run. The largest among the rows of a run and a precision
            is the best product of the machine. Int8 rows have a product of int8, and all
            their operations count, those that a variant keeps in fp32 too. In rows up to commit
            da1805e38404 it is PyTorch's product of 2048 x 2048 in fp32, whatever ran them.
        max_rel_error: largest difference to eager vkrt, relative to the largest value, in
            embeddings, logits and scores; for eager vkrt that of the fp32 variant furthest from
            it. Checked in the same run before anything was timed.
        torch, transformers, onnxruntime, openvino, numpy: versions; empty where not installed.
    """

    date: str
    commit: str
    case: str
    model: str
    image_size: int
    photo: str
    variant: str
    backend: str
    device: str
    cpu: str
    cores: int
    threads: int
    precision: str
    p20_ms: float | None
    p50_ms: float | None
    p80_ms: float | None
    p99_ms: float | None
    samples: int
    baseline: str
    ratio_to_vkrt: float | None
    paired_ratio: float | None
    paired_ratio_p20: float | None
    paired_ratio_p80: float | None
    peak_rss_mib: float | None
    rss_growth_mib: float | None
    gflops: float | None
    peak_gflops: float
    max_rel_error: float | None
    torch: str
    transformers: str
    onnxruntime: str | None
    openvino: str | None
    numpy: str
    python: str


@dataclass(frozen=True)
class BarRow:
    """Hold what a run came to in one of the things that vkrt must reach (benchmarks.bars).

    Attributes:
        date, commit, cpu, threads: as in the run's rows of results.csv.
        what: in words, the model first.
        must: "at least" or "at most" the bar.
        verdict: "reached" or "missed".
    """

    date: str
    commit: str
    cpu: str
    threads: int
    what: str
    figure: float
    must: str
    bar: float
    verdict: str


@dataclass(frozen=True)
class EnduranceRow:
    """Hold the memory of one long run, read all along once it had warmed up.

    Attributes:
        case: "stream" (frames one by one) or "track" (a clip from its first frame to its last).
        rss_mib: the median of the readings, with the lowest and the highest.
        growth_mib: the rise of a straight line through the readings, from the first to the last.
        bar: what growth may be at most.
    """

    date: str
    commit: str
    cpu: str
    threads: int
    case: str
    model: str
    image_size: int
    backend: str
    frames: int
    objects: int
    ms_a_frame: float
    rss_mib: float
    lowest_mib: float
    highest_mib: float
    growth_mib: float
    bar: float


@dataclass(frozen=True)
class QualityRow:
    """Hold the quality of a model for one kind of prompt.

    Attributes:
        checkpoint: start of the SHA-256 of the weights.
        scenes: held-out scenes that count; `skipped` had no object large enough.
        mean, p10, median: of the IoU with the visible mask.
        calibration: mean of |predicted IoU - IoU|; none for the ideal choice.
        bar: what the mean must reach, if anything.
    """

    date: str
    commit: str
    model: str
    checkpoint: str
    scenes: int
    skipped: int
    kind: str
    mean: float
    p10: float
    median: float
    calibration: float | None
    bar: float | None


@dataclass(frozen=True)
class TrackingRow:
    """Hold how well a model tracks objects through clips, in one measure.

    Attributes:
        checkpoint: start of the SHA-256 of the weights.
        image_size: side of the model's input, in pixels.
        clips: held-out clips that count, of `frames` frames each; `skipped` before them had no
            object to judge by.
        measure: "J", "F" or "J&F" (benchmarks.jf).
        mean, p10, median: over the clips, of each clip's mean over its frames.
        bar: what the mean must reach, if anything.
    """

    date: str
    commit: str
    model: str
    checkpoint: str
    image_size: int
    clips: int
    skipped: int
    frames: int
    measure: str
    mean: float
    p10: float
    median: float
    bar: float | None


def columns(kind: type) -> list[str]:
    """Return the header of a kind of row."""
    return [field.name for field in fields(kind)]


def as_text(value: Any) -> str:
    """Return a value as its cell: nothing for None, five significant digits for a float."""
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def append_rows(path: Path, rows: Sequence[Any]) -> None:
    """Append rows of one kind to a file, with the header if the file is new or empty.

    Raises:
        ValueError: the file has other columns.
    """
    if not rows:
        return
    kind = type(rows[0])
    check_columns(path, kind)
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new(path):
            writer.writerow(columns(kind))
        writer.writerows([as_text(value) for value in astuple(row)] for row in rows)


def read_rows(path: Path, kind: type) -> list[dict[str, str]]:
    """Return the cells of each row by column.

    Raises:
        ValueError: the file has other columns than this kind of row.
    """
    check_columns(path, kind)
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def is_new(path: Path) -> bool:
    """Return whether a file has no header yet."""
    return not path.exists() or path.stat().st_size == 0


def check_columns(path: Path, kind: type) -> None:
    """Refuse a file that rows of this kind can't be appended to, before they are measured.

    Raises:
        ValueError: it has other columns.
    """
    if is_new(path):
        return
    wanted = columns(kind)
    with path.open(newline="") as file:
        found = next(csv.reader(file), [])
    if found != wanted:
        raise ValueError(
            f"{path} has other columns than this version writes: move it aside "
            f"(wanted {wanted}, found {found})"
        )

"""What vkrt must reach beside its peers, and whether a run's rows reach it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.results import BarRow, SpeedRow
from benchmarks.variants import VARIANTS
from vkrt import catalog

__all__ = ["Verdict", "as_rows", "judge"]

FASTER = {"sam2.1-tiny": 1.15, "sam2.1-base-plus": 1.12}  # than the best fp32 peer
FASTER_INT8 = {"sam2.1-tiny": 1.5}
FASTER_CLICK = 3.0
P99_OVER_MEDIAN = 1.5
COLD_SECONDS = 1.5  # besides one encode
MEMORY = 1.0  # of what the plain export holds
GROWTH_MIB = 1e6 / 2**20
PLAIN = "onnxruntime"


@dataclass(frozen=True)
class Verdict:
    """Hold a figure and what it must be.

    Attributes:
        what: in words.
        at_least: whether `bar` is the least or the most it may be.
    """

    what: str
    figure: float
    bar: float
    at_least: bool

    @property
    def holds(self) -> bool:
        """Return whether the bar is reached; NaN does not reach any."""
        return self.figure >= self.bar if self.at_least else self.figure <= self.bar


class Case:
    """Look up the rows of one case of one model."""

    def __init__(self, rows: Sequence[SpeedRow], case: str) -> None:
        self.rows = [row for row in rows if row.case == case]

    @property
    def ours(self) -> SpeedRow | None:
        """Return the baseline's row."""
        return next((row for row in self.rows if row.variant == row.baseline), None)

    def of(self, variant: str) -> SpeedRow | None:
        """Return a variant's row."""
        return next((row for row in self.rows if row.variant == variant), None)

    def like(self, other: SpeedRow) -> SpeedRow | None:
        """Return the row of vkrt on the same backend in the same precision."""
        ours = (row for row in self.rows if VARIANTS[row.variant].is_ours)
        same = (other.backend, other.precision)
        return next((row for row in ours if (row.backend, row.precision) == same), None)

    def best_peer(self) -> SpeedRow | None:
        """Return the row of the fastest peer in fp32."""
        peers = [
            row
            for row in self.rows
            if row.precision == "fp32" and not VARIANTS[row.variant].is_ours and row.p50_ms
        ]
        return min(peers, key=lambda row: row.p50_ms or 0.0, default=None)


def judge(rows: Sequence[SpeedRow]) -> list[Verdict]:
    """Return the verdicts on one model's rows; none on a model or size without bars."""
    if not rows or rows[0].image_size != catalog.find(rows[0].model).config.image_size:
        return []
    return [*on_encode(rows), *on_click(rows), *on_cold(rows), *on_memory(rows)]


def as_rows(verdicts: Sequence[Verdict], of: SpeedRow) -> list[BarRow]:
    """Return what is kept of verdicts; `of` is any row of the run they judge."""
    return [
        BarRow(
            date=of.date,
            commit=of.commit,
            cpu=of.cpu,
            threads=of.threads,
            what=verdict.what,
            figure=verdict.figure,
            must="at least" if verdict.at_least else "at most",
            bar=verdict.bar,
            verdict="reached" if verdict.holds else "missed",
        )
        for verdict in verdicts
    ]


def faster(
    what: str, ours: SpeedRow | None, peer: SpeedRow | None, bar: float | None
) -> list[Verdict]:
    """Return the verdict on how many times as long a peer takes, if all are there."""
    if bar is None or not ours or not peer or not ours.p50_ms or not peer.p50_ms:
        return []
    text = f"{what}: {peer.variant} over {ours.variant}"
    return [Verdict(text, peer.p50_ms / ours.p50_ms, bar, at_least=True)]


def on_encode(rows: Sequence[SpeedRow]) -> list[Verdict]:
    """Judge encode in fp32, on either runtime of bundles, and int8 by the best fp32 peer."""
    case, model = Case(rows, "encode"), rows[0].model
    peer, int8 = case.best_peer(), case.of("vkrt-int8")
    other = case.of("vkrt-openvino")
    return [
        *faster(f"{model} encode", case.ours, peer, FASTER.get(model)),
        *faster(f"{model} encode", other, peer, FASTER.get(model)),
        *faster(f"{model} encode, int8", int8, peer, FASTER_INT8.get(model)),
    ]


def on_click(rows: Sequence[SpeedRow]) -> Iterator[Verdict]:
    """Judge a click by transformers as it is and by the best peer, and its own spread."""
    case = Case(rows, "click")
    if not case.ours or rows[0].model not in FASTER:
        return
    what = f"{rows[0].model} click"
    yield from faster(what, case.ours, case.of("transformers"), FASTER_CLICK)
    yield from faster(f"{what}, best peer", case.ours, case.best_peer(), FASTER_CLICK)
    if case.ours.p99_ms and case.ours.p50_ms:
        spread = case.ours.p99_ms / case.ours.p50_ms
        what += f", p99 over the median of {case.ours.samples}, {case.ours.variant}"
        yield Verdict(what, spread, P99_OVER_MEDIAN, at_least=False)


def on_cold(rows: Sequence[SpeedRow]) -> Iterator[Verdict]:
    """Judge the way to the first masks without one encode: that of the case "encode".

    The new process's own encode would take what only a first one costs out of the sum.
    """
    total = Case(rows, "cold").ours
    if rows[0].model not in FASTER or not total:
        return
    encode = Case(rows, "encode").like(total)
    if encode and encode.p50_ms and total.p50_ms:
        seconds = (total.p50_ms - encode.p50_ms) / 1e3
        what = f"{rows[0].model} cold start, s: {total.variant} less one encode"
        yield Verdict(what, seconds, COLD_SECONDS, at_least=False)


def on_memory(rows: Sequence[SpeedRow]) -> Iterator[Verdict]:
    """Judge peak memory by the plain export in ONNX Runtime, and growth by itself."""
    for name in ("memory", "memory-encode"):
        ours, plain = Case(rows, name).ours, Case(rows, name).of(PLAIN)
        if ours and plain and ours.peak_rss_mib and plain.peak_rss_mib:
            share, what = ours.peak_rss_mib / plain.peak_rss_mib, f"{rows[0].model} {name}"
            yield Verdict(f"{what}: {ours.variant} over {PLAIN}", share, MEMORY, at_least=False)
    grown = Case(rows, "growth").ours
    if grown and grown.rss_growth_mib is not None:
        what = f"{rows[0].model} growth over {grown.samples} encodes, MiB, {grown.variant}"
        yield Verdict(what, grown.rss_growth_mib, GROWTH_MIB, at_least=False)

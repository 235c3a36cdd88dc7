"""From the figures of a contest to rows of results.csv and a table for people."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TypedDict

from rich.console import Console
from rich.table import Table

from benchmarks.arithmetic import own_flops, plain_flops
from benchmarks.cases import CaseFigures, Figures
from benchmarks.contest import Contest
from benchmarks.machine import Machine
from benchmarks.measure import compare, summarize
from benchmarks.peak import product_of
from benchmarks.results import SpeedRow
from benchmarks.variants import baseline_of

__all__ = ["make_rows", "show"]

# In a process of their own the variants run one after another, for minutes each.
NOT_INTERLEAVED = "growth"


class Times(TypedDict):
    """Columns that say how long it took."""

    p20_ms: float | None
    p50_ms: float | None
    p80_ms: float | None
    p99_ms: float | None
    samples: int


class Ratios(TypedDict):
    """Columns that compare with the baseline."""

    baseline: str
    ratio_to_vkrt: float | None
    paired_ratio: float | None
    paired_ratio_p20: float | None
    paired_ratio_p80: float | None


def times_of(figures: Figures) -> Times:
    """Return the columns of the seconds, empty if there are none."""
    if not figures.seconds:
        empty: Times = {
            "p20_ms": None,
            "p50_ms": None,
            "p80_ms": None,
            "p99_ms": None,
            "samples": 0,
        }
        return {**empty, "samples": figures.samples}
    found = summarize(figures.seconds)
    return {
        "p20_ms": found.p20,
        "p50_ms": found.p50,
        "p80_ms": found.p80,
        "p99_ms": found.p99,
        "samples": found.samples,
    }


def ratios_of(case: str, name: str, by_variant: Mapping[str, Figures]) -> Ratios:
    """Return the columns that compare a variant with the baseline among them."""
    baseline = baseline_of(list(by_variant))
    seconds = by_variant[name].seconds
    if baseline is None or not seconds or case == NOT_INTERLEAVED:
        return {
            "baseline": baseline or "",
            "ratio_to_vkrt": None,
            "paired_ratio": None,
            "paired_ratio_p20": None,
            "paired_ratio_p80": None,
        }
    ratio = compare(seconds, by_variant[baseline].seconds)
    return {
        "baseline": baseline,
        "ratio_to_vkrt": ratio.of_medians,
        "paired_ratio": ratio.paired,
        "paired_ratio_p20": ratio.paired_p20,
        "paired_ratio_p80": ratio.paired_p80,
    }


def make_rows(
    contest: Contest, found: CaseFigures, machine: Machine, peaks: Mapping[str, float]
) -> list[SpeedRow]:
    """Return a row for each case and variant; `peaks` are GFLOP/s by product."""
    config = contest.model.config
    flops = {True: own_flops(config), False: plain_flops(config)}
    rows = []
    for case, by_variant in found.items():
        for name, figures in by_variant.items():
            entrant, times = contest.entrants[name], times_of(figures)
            work = flops[entrant.variant.is_ours].get(case)
            rows.append(
                SpeedRow(
                    case=case,
                    model=contest.model.name,
                    image_size=config.image_size,
                    photo="{1}x{0}".format(*contest.photo.shape),
                    variant=name,
                    backend=entrant.backend,
                    device="cpu",
                    precision=entrant.precision,
                    peak_rss_mib=figures.peak_rss_mib,
                    rss_growth_mib=figures.rss_growth_mib,
                    gflops=work / times["p50_ms"] / 1e6 if work and times["p50_ms"] else None,
                    peak_gflops=peaks[product_of(entrant.backend, entrant.precision)],
                    max_rel_error=entrant.error,
                    **times,
                    **ratios_of(case, name, by_variant),
                    **machine,
                )
            )
    return rows


def cell(form: str, *values: float | None) -> str:
    """Return values in a form, nothing if one is missing."""
    return "" if None in values else form.format(*values)


def products(rows: Sequence[SpeedRow]) -> str:
    """Return the speed of each product that rows are a share of."""
    found = {product_of(row.backend, row.precision): row.peak_gflops for row in rows}
    return ", ".join(f"{name} {gflops:.0f}" for name, gflops in sorted(found.items()))


def shares_of(row: SpeedRow, rows: Sequence[SpeedRow]) -> tuple[float | None, float | None]:
    """Return a row's speed over its runtime's product and over the best in its precision."""
    if row.gflops is None:
        return None, None
    best = max(other.peak_gflops for other in rows if other.precision == row.precision)
    return row.gflops / row.peak_gflops, row.gflops / best


def show(rows: list[SpeedRow]) -> None:
    """Print the rows as a table."""
    first = rows[0]
    table = Table(
        title=f"{first.model} at {first.image_size}, {first.photo} photo, {first.cpu}, "
        f"{first.cores} cores, threads: {first.threads}",
        caption=f"Most GFLOP/s in a product: {products(rows)}. Of peak: of the own runtime's "
        "product; of best: of the fastest in the same precision.",
    )
    heads = ["p20 ms", "p50 ms", "p80 ms", "p99 ms", "x baseline", "paired"]
    heads += ["GFLOP/s", "of peak", "of best", "MiB", "grown MiB", "error"]
    for name in ("case", "variant", *heads):
        table.add_column(name, justify="right" if name in heads else "left")
    for row in rows:
        table.add_row(
            row.case,
            row.variant + (" *" if row.variant == row.baseline else ""),
            *(cell("{:.1f}", ms) for ms in (row.p20_ms, row.p50_ms, row.p80_ms, row.p99_ms)),
            cell("{:.2f}", row.ratio_to_vkrt),
            cell(
                "{:.2f} ({:.2f}-{:.2f})",
                row.paired_ratio,
                row.paired_ratio_p20,
                row.paired_ratio_p80,
            ),
            cell("{:.3g}", row.gflops),
            *(cell("{:.0%}", share) for share in shares_of(row, rows)),
            cell("{:.0f}", row.peak_rss_mib),
            cell("{:.2f}", row.rss_growth_mib),
            cell("{:.0e}", row.max_rel_error),
        )
    Console(width=None if sys.stdout.isatty() else 180).print(table)

"""Speed of image generation, stage by stage: `python -m benchmarks.generate`.

vkrt and diffusers run on the very same random weights, in the same rounds. Before anything is
timed, their outputs must agree.

Variants of a bundle run what `vkrt export` made of the same weights: write them with
`python -m benchmarks.random_sd35 FILE`, export that, and give --bundle. Other weights are refused,
since they do not compute the same.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.agreement import LIMITS, DisagreementError, check, relative_error
from benchmarks.bars import Case, Verdict, as_rows, faster
from benchmarks.cases import PAUSE, Figures
from benchmarks.generate_cases import BUNDLED, CASES, PEERS, Entrant, Setting
from benchmarks.generate_results import GENERATE, GenerateRow
from benchmarks.machine import describe_machine
from benchmarks.measure import measure
from benchmarks.peak import peaks, product_of
from benchmarks.results import BARS, BarRow, append_rows, check_columns
from benchmarks.rows import cell, products, ratios_of, shares_of, times_of
from benchmarks.segment import split, tell
from vkrt import VkrtError
from vkrt.bundle import read_bundle
from vkrt.cli.generate_options import parse_size
from vkrt.models.sd35.known import KNOWN

__all__ = ["compare_outputs", "judge", "main", "read_setting", "run"]

# What vkrt must reach: diffusers' time over its own, by case and precision.
FASTER = {("mmdit-step", "fp32"): 1.15, ("mmdit-step", "int8"): 1.6, ("vae-decode", "fp32"): 1.15}
MEASURED = ("sd3.5-medium", 512, 512, 333)  # what the bars are for


def compare_outputs(entrants: Mapping[str, Entrant]) -> dict[str, float | None]:
    """Run each once and return its relative error to the first one in fp32, None for that one.

    Raises:
        DisagreementError: an output differs by more than its precision allows, or is not finite.
    """
    outputs = {name: entrant.run() for name, entrant in entrants.items()}
    for name, found in outputs.items():
        if not np.isfinite(found).all():
            raise DisagreementError(f"{name}'s output is not finite")
    first = min(entrants, key=lambda name: entrants[name].precision != "fp32", default="")
    errors: dict[str, float | None] = {}
    for name, found in outputs.items():
        error = None
        if name != first:
            error = relative_error(found, outputs[first])
            check(f"{name} and {first}", error, LIMITS[entrants[name].precision])
        errors[name] = error
    return errors


def run(
    case: str, setting: Setting, rounds: int, found_peaks: Mapping[str, float]
) -> list[GenerateRow]:
    """Return the rows of a case; its weights are gone then.

    Raises:
        DisagreementError: the outputs of two entrants differ.
    """
    entrants = CASES[case](setting)
    errors = compare_outputs(entrants)
    calls = {name: entrant.run for name, entrant in entrants.items()}
    samples = measure(calls, rounds, warmups=1, pause=PAUSE)
    figures = {name: Figures(len(seconds), seconds) for name, seconds in samples.items()}
    machine = describe_machine()
    rows = []
    for name, entrant in entrants.items():
        times = times_of(figures[name])
        rows.append(
            GenerateRow(
                case=case,
                model=setting.model,
                image_size=max(setting.width, setting.height),
                photo=f"{setting.width}x{setting.height}",
                variant=name,
                backend=entrant.backend,
                device="cpu",
                precision=entrant.precision,
                peak_rss_mib=None,
                rss_growth_mib=None,
                gflops=entrant.flops / times["p50_ms"] / 1e6 if times["p50_ms"] else None,
                peak_gflops=found_peaks[product_of(entrant.backend, entrant.precision)],
                max_rel_error=errors[name],
                tokens=setting.tokens,
                psnr_db=None,
                diffusers=version("diffusers"),
                **times,
                **ratios_of(case, name, figures),
                **machine,
            )
        )
    return rows


def judge(rows: Sequence[GenerateRow]) -> list[Verdict]:
    """Return the verdicts on one case; none on what the bars are not for."""
    verdicts: list[Verdict] = []
    for row in rows:
        size = (row.model, *map(int, row.photo.split("x")), row.tokens)
        if size == MEASURED and row.variant != "diffusers":
            bar = FASTER.get((row.case, row.precision))
            what = f"{row.model} {row.case} {row.photo}, {row.precision}"
            verdicts += faster(what, row, Case(rows, row.case).of("diffusers"), bar)
    return verdicts


def show(rows: Sequence[GenerateRow]) -> None:
    """Print the rows of a case as a table."""
    first = rows[0]
    table = Table(
        title=f"{first.case}: {first.model}, {first.photo}, {first.tokens} tokens, {first.cpu}, "
        f"threads: {first.threads}",
        caption=f"Most GFLOP/s in a product: {products(rows)}. Of peak: of the own runtime's.",
    )
    heads = ("p20 s", "p50 s", "p80 s", "x baseline", "paired", "GFLOP/s", "of peak", "error")
    for name in ("variant", "precision", *heads):
        table.add_column(name, justify="right" if name in heads else "left")
    for row in rows:
        seconds = (None if ms is None else ms / 1e3 for ms in (row.p20_ms, row.p50_ms, row.p80_ms))
        spread = (row.paired_ratio, row.paired_ratio_p20, row.paired_ratio_p80)
        table.add_row(
            row.variant + (" *" if row.variant == row.baseline else ""),
            row.precision,
            *(cell("{:.3f}", each) for each in seconds),
            cell("{:.2f}", row.ratio_to_vkrt),
            cell("{:.2f} ({:.2f}-{:.2f})", *spread),
            cell("{:.3g}", row.gflops),
            cell("{:.0%}", shares_of(row, rows)[0]),
            cell("{:.0e}", row.max_rel_error),
        )
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def read_setting(
    model: str, size: str, tokens: int, peers: str, bundle: Path | None, threads: int
) -> Setting:
    """Return what the options ask for.

    Raises:
        ValueError: a name is not known, or a bundle is missing.
        VkrtError: the size or the bundle is none.
    """
    if model not in KNOWN:
        raise ValueError(f"unknown model {model}: choose of {', '.join(KNOWN)}")
    names = split(peers, PEERS, "peer") or ()
    if bundle is None and any(name in BUNDLED for name in names):
        raise ValueError(f"{' and '.join(BUNDLED)} need --bundle: export one with `vkrt export`")
    side = parse_size(size if "x" in size else f"{size}x{size}")
    found = None if bundle is None else read_bundle(bundle)
    if found and found.header.precision not in LIMITS:
        raise ValueError(f"{bundle} is in {found.header.precision}, not {' or '.join(LIMITS)}")
    return Setting(
        model, KNOWN[model], side["width"], side["height"], tokens, names, threads, found
    )


def leave(why: object, code: int) -> typer.Exit:
    """Print a line and return what ends the command."""
    print(f"benchmarks.generate: {why}", file=sys.stderr)
    return typer.Exit(code)


def main(
    cases: Annotated[str, typer.Option(help=f"Of {', '.join(CASES)}.")] = ",".join(CASES),
    peers: Annotated[str, typer.Option(help=f"Of {', '.join(PEERS)}.")] = "vkrt,diffusers",
    model: Annotated[str, typer.Option(help=f"Of {', '.join(KNOWN)}.")] = "sd3.5-medium",
    size: Annotated[str, typer.Option(help="Of the picture: 512, or 512x768.")] = "512",
    tokens: Annotated[int, typer.Option(min=1, help="Of the text: CLIP's and T5's.")] = 333,
    bundle: Annotated[Path | None, typer.Option(help="What vkrt-onnx and such run.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="Of each peer.")] = None,
    dry: Annotated[bool, typer.Option("--dry", help="Write no CSV file.")] = False,
) -> None:
    """Measure a step of the transformer and the decoder of pictures against diffusers."""
    used = threads or torch.get_num_threads()
    try:
        names = split(cases, tuple(CASES), "case") or ()
        setting = read_setting(model, size, tokens, peers, bundle, used)
        if not dry:
            check_columns(GENERATE, GenerateRow)
            check_columns(BARS, BarRow)
    except (VkrtError, ValueError) as error:
        raise leave(error, 2) from None
    torch.set_num_threads(used)
    wanted = {product_of(*setting.kind_of(name)) for name in setting.peers}
    found_peaks = peaks(sorted(wanted), used)
    for case in names:
        try:
            rows = run(case, setting, rounds, found_peaks)
        except (DisagreementError, VkrtError) as error:
            raise leave(f"{case} is not measured, because {error}", 1) from None
        if not rows:
            continue
        verdicts = judge(rows)
        if not dry:
            append_rows(GENERATE, rows)
            append_rows(BARS, as_rows(verdicts, rows[0]))
        show(rows)
        tell(verdicts)


if __name__ == "__main__":
    typer.run(main)

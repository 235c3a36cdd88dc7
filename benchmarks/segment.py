"""Speed of encode and click against transformers: `python -m benchmarks.segment`.

All variants have the same random weights. First they must agree; then they are timed in the same
rounds. Nothing is written or printed as a ratio unless the agreement held.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.agreement import DisagreementError, check_agreement
from benchmarks.arithmetic import stage_flops
from benchmarks.machine import describe_machine, peak_gflops
from benchmarks.measure import compare, measure, summarize
from benchmarks.memory import peak_of
from benchmarks.peers.base import Peer
from benchmarks.peers.ours import Ours
from benchmarks.peers.transformers_compile import TransformersCompile
from benchmarks.peers.transformers_eager import TransformersEager
from benchmarks.peers.transformers_sam2 import oracle_model, twin
from benchmarks.photo import CLICKS, set_photo
from benchmarks.results import RESULTS, SpeedRow, append_rows, check_columns
from vkrt import VkrtError, catalog

__all__ = ["Contest", "Plan", "enter", "make_rows"]

STAGES = {"encode": "image_encoder", "click": "mask_decoder"}
ONE_CLICK = {"images": 1, "prompts": 1, "points": 2}  # the second point is the pad


@dataclass(frozen=True)
class Plan:
    """Say what a run measures.

    Attributes:
        rounds: samples of encode, and `clicks` of click.
        compiles: whether torch.compile takes part.
        memory: whether each variant's peak memory is measured, in a process of its own.
    """

    rounds: int = 5
    clicks: int = 40
    compiles: bool = True
    memory: bool = True


@dataclass(frozen=True)
class Contest:
    """Hold the variants of one model that agree, and by how much they differ.

    Attributes:
        errors: largest relative error by variant's name; for vkrt the worst of the others.
    """

    model: catalog.Model
    ours: Ours
    peers: list[TransformersEager]
    errors: dict[str, float]

    @property
    def variants(self) -> list[Peer]:
        """Return all that is timed, vkrt first."""
        return [self.ours, *self.peers]


def enter(model: catalog.Model, photo: np.ndarray, plan: Plan) -> Contest:
    """Build every variant with the same weights and see that all agree.

    Raises:
        DisagreementError: one does not.
    """
    torch.compiler.reset()
    oracle = oracle_model(model.config)
    ours = Ours(model, twin(oracle, model.config))
    side = model.config.image_size
    peers = [TransformersEager(oracle, side)]
    if plan.compiles:
        peers.append(TransformersCompile(oracle, side))
    errors = {peer.name: check_agreement(ours, peer, photo, CLICKS) for peer in peers}
    return Contest(model, ours, peers, {ours.name: max(errors.values()), **errors})


def time_all(contest: Contest, photo: np.ndarray, plan: Plan) -> dict[str, dict[str, list[float]]]:
    """Return the seconds of each round by case and variant."""
    x, y = CLICKS[0]
    encodes: Mapping[str, Callable[[], Any]] = {
        peer.name: partial(peer.encode, photo) for peer in contest.variants
    }
    clicks: Mapping[str, Callable[[], Any]] = {
        peer.name: partial(peer.click, peer.encode(photo), x, y) for peer in contest.variants
    }
    return {
        "encode": measure(encodes, plan.rounds, warmups=1),
        "click": measure(clicks, plan.clicks, warmups=3),
    }


def peaks(contest: Contest, plan: Plan) -> dict[str, float | None]:
    """Return the peak memory of each variant in MiB."""
    names = [peer.name for peer in contest.variants]
    if not plan.memory:
        return dict.fromkeys(names)
    return {name: peak_of(name, contest.model, torch.get_num_threads()) for name in names}


def make_rows(contest: Contest, photo: np.ndarray, plan: Plan, peak: float) -> list[SpeedRow]:
    """Time the variants and return a row for each case and variant."""
    samples = time_all(contest, photo, plan)
    memory, machine = peaks(contest, plan), describe_machine()
    rows = []
    for case, seconds in samples.items():
        flops = stage_flops(contest.ours.stages[STAGES[case]], **ONE_CLICK)
        for peer in contest.variants:
            summary = summarize(seconds[peer.name])
            ratio = compare(seconds[peer.name], seconds[contest.ours.name])
            rows.append(
                SpeedRow(
                    case=case,
                    model=contest.model.name,
                    image_size=contest.model.config.image_size,
                    photo=f"{photo.shape[1]}x{photo.shape[0]}",
                    variant=peer.name,
                    backend=peer.backend,
                    device="cpu",
                    precision="fp32",
                    p20_ms=summary.p20,
                    p50_ms=summary.p50,
                    p80_ms=summary.p80,
                    samples=summary.samples,
                    ratio_to_vkrt=ratio.of_medians,
                    paired_ratio=ratio.paired,
                    paired_ratio_p20=ratio.paired_p20,
                    paired_ratio_p80=ratio.paired_p80,
                    peak_rss_mib=memory[peer.name],
                    gflops=flops / summary.p50 / 1e6,
                    peak_gflops=peak,
                    max_rel_error=contest.errors[peer.name],
                    **machine,
                )
            )
    return rows


def show(rows: list[SpeedRow]) -> None:
    """Print the rows as a table."""
    first = rows[0]
    table = Table(
        title=f"{first.photo} photo, {first.precision}, {first.cpu}, {first.cores} cores, "
        f"threads: {first.threads}, at most {first.peak_gflops:.0f} GFLOP/s",
    )
    heads = ("p20 ms", "p50 ms", "p80 ms", "x vkrt", "paired", "GFLOP/s", "MiB", "error")
    for name in ("model", "case", "variant", *heads):
        table.add_column(name, justify="right" if name in heads else "left")
    for row in rows:
        table.add_row(
            f"{row.model} {row.image_size}",
            row.case,
            row.variant,
            *(f"{ms:.1f}" for ms in (row.p20_ms, row.p50_ms, row.p80_ms)),
            f"{row.ratio_to_vkrt:.2f}",
            f"{row.paired_ratio:.2f} ({row.paired_ratio_p20:.2f}-{row.paired_ratio_p80:.2f})",
            f"{row.gflops:.3g}",
            "" if row.peak_rss_mib is None else f"{row.peak_rss_mib:.0f}",
            f"{row.max_rel_error:.0e}",
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def leave(why: str, code: int) -> typer.Exit:
    """Print a line and return what ends the command."""
    print(f"benchmarks.segment: {why}", file=sys.stderr)
    return typer.Exit(code)


def main(
    models: Annotated[str, typer.Option(help="Names, comma-separated.")] = (
        "sam2.1-tiny,sam2.1-base-plus"
    ),
    rounds: Annotated[int, typer.Option(min=1, help="Samples of encode.")] = Plan.rounds,
    clicks: Annotated[int, typer.Option(min=1, help="Samples of click.")] = Plan.clicks,
    image_size: Annotated[
        int | None, typer.Option(help="Side of the model's input; its own if not given.")
    ] = None,
    compile_: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Measure torch.compile too.")
    ] = Plan.compiles,
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Measure peak memory too.")
    ] = Plan.memory,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch.")] = None,
    dry: Annotated[bool, typer.Option("--dry", help="Do not write results.csv.")] = False,
) -> None:
    """Measure encode and click of vkrt and its peers."""
    if threads is not None:
        torch.set_num_threads(threads)
    plan, photo = Plan(rounds, clicks, compile_, memory), set_photo()
    try:
        chosen = [catalog.find(name, image_size) for name in models.split(",")]
        if not dry:
            check_columns(RESULTS, SpeedRow)
    except (VkrtError, ValueError) as error:
        raise leave(str(error), 2) from None
    for model in chosen:
        try:
            contest = enter(model, photo, plan)
        except DisagreementError as error:
            raise leave(f"{model.name} is not measured, because {error}", 1) from None
        rows = make_rows(contest, photo, plan, peak_gflops())
        if not dry:
            append_rows(RESULTS, rows)
        show(rows)


if __name__ == "__main__":
    typer.run(main)

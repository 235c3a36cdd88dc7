"""Speed and memory of vkrt and its peers on a photo: `python -m benchmarks.segment`.

All variants have the same random weights. First each must agree with eager vkrt; then they are
measured in the same rounds. Nothing is written or printed as a ratio unless the agreement held.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import typer

from benchmarks.agreement import DisagreementError
from benchmarks.bars import Verdict, as_rows, judge
from benchmarks.cases import IN_PROCESS, AloneError, CaseFigures, Plan, run_case
from benchmarks.contest import enter
from benchmarks.machine import describe_machine
from benchmarks.peak import peaks, product_of
from benchmarks.photo import set_photo
from benchmarks.results import BARS, RESULTS, BarRow, SpeedRow, append_rows, check_columns
from benchmarks.rows import make_rows, show
from benchmarks.variants import CASES, VARIANTS, AbsentError
from vkrt import VkrtError, catalog

__all__ = ["TABLE", "Order", "main", "run_order"]

# What is measured of each model unless told otherwise.
TABLE = {
    "sam2.1-tiny": ("encode", "click", "cold", "memory"),
    "sam2.1-base-plus": ("encode",),
    "sam2.1-nano": ("growth",),
}


@dataclass(frozen=True)
class Order:
    """Say what to measure of one model.

    Attributes:
        cases: in the order of CASES.
        variants: those asked for by name; None is those that each case is made for.
    """

    model: catalog.Model
    cases: tuple[str, ...]
    variants: tuple[str, ...] | None

    def names(self, *cases: str) -> list[str]:
        """Return the variants that take part in any of the cases."""
        if self.variants is not None:
            return list(self.variants)
        return [v.name for v in VARIANTS.values() if set(v.cases) & set(cases)]


def split(text: str | None, known: Sequence[str], what: str) -> tuple[str, ...] | None:
    """Return the names in a comma-separated text, in the order of the known ones.

    Raises:
        ValueError: one is not known.
    """
    if text is None:
        return None
    asked = [name.strip() for name in text.split(",")]
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise ValueError(f"unknown {what} {', '.join(unknown)}: choose of {', '.join(known)}")
    return tuple(name for name in known if name in asked)


def orders(
    models: str | None, cases: str | None, peers: str | None, image_size: int | None
) -> list[Order]:
    """Return what the options ask for.

    Raises:
        ValueError: a name is not known, or nothing is left to measure.
    """
    asked, variants = split(cases, CASES, "case"), split(peers, list(VARIANTS), "peer")
    names = list(TABLE) if models is None else [name.strip() for name in models.split(",")]
    found = []
    for name in names:
        model = catalog.find(name, image_size)
        usual = TABLE.get(model.name, CASES)
        chosen = asked or usual
        if models is None:
            chosen = tuple(case for case in chosen if case in usual)
        if chosen:
            found.append(Order(model, chosen, variants))
    if not found:
        raise ValueError(f"no model is measured in {cases} by default: name one with --models")
    return found


def leave_out(name: str, why: AbsentError) -> None:
    """Tell that a variant takes no part."""
    print(f"benchmarks.segment: {name} is not measured: {why}", file=sys.stderr)


def refuse(name: str, why: AbsentError) -> None:
    """End the command, since a variant that was asked for can't run."""
    raise leave(f"{name} can't be measured: {why}", 2)


def run_order(order: Order, photo: np.ndarray, plan: Plan, threads: int) -> list[SpeedRow]:
    """Return the rows of one model.

    Raises:
        DisagreementError: a variant does not compute the same.
        AloneError: a variant failed in a process of its own.
    """
    timed = [case for case in order.cases if case in IN_PROCESS]
    absent = leave_out if order.variants is None else refuse
    kept = order.names(*timed)
    contest = enter(order.model, photo, order.names(*order.cases), kept, threads, absent)
    found: CaseFigures = {}
    products = {product_of(e.backend, e.precision) for e in contest.entrants.values()}
    found_peaks = peaks(sorted(products), threads)
    for case in sorted(order.cases, key=CASES.index):
        if case not in IN_PROCESS:
            contest.release()
        names = [name for name in order.names(case) if name in contest.entrants]
        found |= run_case(case, contest, names, plan)
    return make_rows(contest, found, describe_machine(), found_peaks)


def tell(verdicts: list[Verdict]) -> None:
    """Print each verdict on a line."""
    for verdict in verdicts:
        word, sign = ("reached" if verdict.holds else "MISSED"), ("<=", ">=")[verdict.at_least]
        print(f"{word}: {verdict.what}: {verdict.figure:.3g} ({sign} {verdict.bar:.3g})")


def leave(why: str, code: int) -> typer.Exit:
    """Print a line and return what ends the command."""
    print(f"benchmarks.segment: {why}", file=sys.stderr)
    return typer.Exit(code)


def main(
    models: Annotated[str | None, typer.Option(help="Names, comma-separated.")] = None,
    cases: Annotated[str | None, typer.Option(help=f"Of {', '.join(CASES)}.")] = None,
    peers: Annotated[str | None, typer.Option(help=f"Of {', '.join(VARIANTS)}.")] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side of the model's input; its own if not given.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Samples of encode.")] = Plan.rounds,
    clicks: Annotated[int, typer.Option(min=1, help="Samples of click.")] = Plan.clicks,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes of each variant, in cold and memory.")
    ] = Plan.processes,
    encodes: Annotated[int, typer.Option(min=1, help="Fresh photos in growth.")] = Plan.encodes,
    warmups: Annotated[int, typer.Option(min=0, help="Photos before them.")] = Plan.warmups,
    threads: Annotated[int | None, typer.Option(min=1, help="Of each variant.")] = None,
    dry: Annotated[bool, typer.Option("--dry", help="Write no CSV file.")] = False,
) -> None:
    """Measure vkrt and its peers; without --models the whole table."""
    plan = Plan(rounds, clicks, processes, encodes, warmups)
    try:
        chosen = orders(models, cases, peers, image_size)
        if not dry:
            check_columns(RESULTS, SpeedRow)
            check_columns(BARS, BarRow)
    except (VkrtError, ValueError) as error:
        raise leave(str(error), 2) from None
    photo = set_photo()
    for order in chosen:
        try:
            rows = run_order(order, photo, plan, threads or torch.get_num_threads())
        except (AloneError, DisagreementError, VkrtError) as error:
            raise leave(f"{order.model.name} is not measured, because {error}", 1) from None
        if not rows:
            raise leave(f"{order.model.name}: no variant that was chosen can run here", 1)
        verdicts = judge(rows)
        if not dry:
            append_rows(RESULTS, rows)
            append_rows(BARS, as_rows(verdicts, rows[0]))
        show(rows)
        tell(verdicts)


if __name__ == "__main__":
    typer.run(main)

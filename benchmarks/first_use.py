"""The first command on a new checkpoint, and the second: `python -m benchmarks.first_use`.

An official-format .pt with random weights is segmented by `vkrt segment --checkpoint`, each time
in an empty cache, and transformers segments the same photo with the same weights and the same
click. Each round starts both as new processes, by turns; seconds are from the start of the process
to its mask's file, CPU seconds those of all its threads. Then the checkpoint is exported into a
cache, and the rounds are run again with that. Nothing is written unless the masks agree.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.machine import ROOT, describe_machine
from benchmarks.peers.transformers_sam2 import oracle_model, twin, write_oracle
from benchmarks.photo import clicks_on, set_photo
from benchmarks.results import BARS, BarRow, append_rows, check_columns
from vkrt import catalog
from vkrt.export.int8.gate import mask_iou

__all__ = ["FIRST_USE", "FirstUseRow", "Runner", "bars_of", "make_rows"]

FIRST_USE = ROOT / "benchmarks" / "first_use.csv"
# Of the first command to transformers' first mask, at most.
FIRST_BAR = 1.3
LEAST_IOU = 0.98
PEER = "transformers"
DROPPED = ("VKRT_BACKEND", "VKRT_EXPORT")
CASES = ("first", "second")


@dataclass(frozen=True)
class FirstUseRow:
    """Hold how soon a new process gave its first mask.

    Attributes:
        case: "first" where the cache was empty, "second" where it had the bundle.
        variant: "vkrt" or "transformers", and `backend` what ran the model.
        p20_s, p50_s, p80_s: seconds over `rounds` processes.
        cpu_s: the median of the CPU seconds.
        paired_ratio: the median over rounds of the seconds over transformers' in that round.
        cpu_ratio: that of the CPU seconds.
        export_s: seconds of the export before the second start.
        iou: of the mask with transformers'.
    """

    date: str
    commit: str
    case: str
    model: str
    image_size: int
    photo: str
    variant: str
    backend: str
    p20_s: float
    p50_s: float
    p80_s: float
    cpu_s: float
    paired_ratio: float
    cpu_ratio: float
    export_s: float | None
    rounds: int
    iou: float
    cpu: str
    cores: int
    threads: int
    torch: str
    transformers: str
    onnxruntime: str | None
    python: str


@dataclass
class Runner:
    """Run a variant in new processes, and keep what they took.

    Attributes:
        name: of the variant.
        command: without the output.
        out: the mask.
        cache: of vkrt; None for another program.
        fresh: whether each run has an empty cache.
    """

    name: str
    command: list[str]
    out: Path
    cache: Path | None = None
    fresh: bool = False
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    backend: str = "eager"
    mask: np.ndarray | None = None

    def run(self) -> None:
        """Run it once.

        Raises:
            RuntimeError: it failed; with its last words.
        """
        self.out.unlink(missing_ok=True)
        if self.cache is not None and self.fresh:
            shutil.rmtree(self.cache, ignore_errors=True)
        before, start = cpu_of_children(), time.time()
        told = run(self.command, self.cache)
        self.seconds.append(self.out.stat().st_mtime - start)
        self.cpu_seconds.append(cpu_of_children() - before)
        self.backend = json.loads(told)["backend"] if told.strip() else "eager"
        with Image.open(self.out) as picture:
            self.mask = np.asarray(picture) > 0


def cpu_of_children() -> float:
    """Return the CPU seconds of all processes that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(command: Sequence[str], cache: Path | None) -> str:
    """Run a command and return its stdout.

    Raises:
        RuntimeError: it failed.
    """
    kept = {name: value for name, value in os.environ.items() if name not in DROPPED}
    if cache is not None:
        kept["VKRT_CACHE"] = str(cache)
    done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True)
    if done.returncode:
        words = " ".join((done.stderr or done.stdout).split())[-300:]
        raise RuntimeError(f"{' '.join(command)[:120]} gave {done.returncode}: {words}")
    return done.stdout


def make_weights(folder: Path, model: catalog.Model) -> tuple[Path, Path]:
    """Write random weights as an official .pt and as transformers' folder, and return both."""
    oracle = oracle_model(model.config)
    write_oracle(oracle, folder / "transformers")
    official = folder / str(model.checkpoint)
    torch.save({"model": twin(oracle, model.config).state_dict()}, official)
    return official, folder / "transformers"


def runners(folder: Path, model: catalog.Model, photo: Path) -> dict[str, Runner]:
    """Return what runs in each case: both of "first" and "second" beside the peer."""
    official, peer = make_weights(folder, model)
    with Image.open(photo) as picture:
        x, y = clicks_on(np.empty((picture.height, picture.width)), 1)[0]
    ours = [sys.executable, "-m", "vkrt.cli", "segment", str(photo), "--model", model.name]
    ours += ["--checkpoint", str(official), "--point", f"{x:.0f},{y:.0f}", "--json", "--out"]
    script = [sys.executable, "-m", "benchmarks.peers.transformers_first", str(peer), str(photo)]
    out = {name: folder / f"{name}.png" for name in (*CASES, PEER)}
    theirs = [*script, f"{x:.0f}", f"{y:.0f}", str(out[PEER])]
    return {
        "first": Runner("vkrt", [*ours, str(out["first"])], out["first"], folder / "new", True),
        "second": Runner("vkrt", [*ours, str(out["second"])], out["second"], folder / "cache"),
        PEER: Runner(PEER, theirs, out[PEER]),
    }


def export(second: Runner) -> float:
    """Export into the cache of the second start, as a user does, and return the seconds."""
    start = time.perf_counter()
    run([*second.command, "--export"], second.cache)
    return time.perf_counter() - start


def agreement(ours: Runner, peer: Runner) -> float:
    """Return the IoU of two masks.

    Raises:
        RuntimeError: one is empty, or they are not the same.
    """
    if ours.mask is None or peer.mask is None or not ours.mask.any() or not peer.mask.any():
        raise RuntimeError(f"{ours.name} or {peer.name} gave an empty mask: nothing is written")
    iou = mask_iou(ours.mask, peer.mask)
    if iou < LEAST_IOU:
        raise RuntimeError(f"the masks have an IoU of only {iou:.3f}: nothing is written")
    return iou


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of the ratios of each round."""
    return float(np.median(np.divide(ours, theirs)))


def make_rows(
    case: str, pair: Sequence[Runner], model: catalog.Model, size: str, export_s: float | None
) -> list[FirstUseRow]:
    """Return the rows of a case: ours, then the peer's.

    Raises:
        RuntimeError: the masks do not agree.
    """
    machine: dict[str, Any] = dict(describe_machine())
    peer, iou = pair[1], agreement(*pair)
    rows = []
    for runner in pair:
        p20, p50, p80 = (float(v) for v in np.percentile(runner.seconds, (20, 50, 80)))
        names = ("date", "commit", "cpu", "cores", "threads", "torch", "transformers")
        row = FirstUseRow(
            **{name: machine[name] for name in (*names, "onnxruntime", "python")},
            case=case,
            model=model.name,
            image_size=model.config.image_size,
            photo=size,
            variant=runner.name,
            backend=runner.backend,
            p20_s=p20,
            p50_s=p50,
            p80_s=p80,
            cpu_s=float(np.median(runner.cpu_seconds)),
            paired_ratio=ratio(runner.seconds, peer.seconds),
            cpu_ratio=ratio(runner.cpu_seconds, peer.cpu_seconds),
            export_s=export_s if runner is not peer else None,
            rounds=len(runner.seconds),
            iou=iou,
        )
        rows.append(row)
    return rows


def bars_of(rows: Sequence[FirstUseRow]) -> list[BarRow]:
    """Return what the first command must reach, and whether it did."""
    return [
        BarRow(
            date=row.date,
            commit=row.commit,
            cpu=row.cpu,
            threads=row.threads,
            what=f"{row.model} first command: {row.variant} over {PEER}",
            figure=row.paired_ratio,
            must="at most",
            bar=FIRST_BAR,
            verdict="reached" if row.paired_ratio <= FIRST_BAR else "missed",
        )
        for row in rows
        if row.case == "first" and row.variant != PEER
    ]


def measure(name: str, cases: Sequence[str], rounds: int, image_size: int | None) -> list[Any]:
    """Return the rows of each case."""
    log, model = Console(stderr=True), catalog.find(name, image_size)
    found: list[FirstUseRow] = []
    with tempfile.TemporaryDirectory(prefix="vkrt-first-") as place:
        folder = Path(place)
        photo = folder / "photo.png"
        Image.fromarray(set_photo()).save(photo)
        size = "{}x{}".format(*Image.open(photo).size)
        every = runners(folder, model, photo)
        if image_size is not None:
            for case in CASES:
                every[case].command[6:6] = ["--image-size", str(image_size)]
        for case in cases:
            export_s = None
            if case == "second":
                log.print("exporting")
                export_s = export(every["second"])
            pair = (every[case], every[PEER])
            for runner in pair:
                runner.seconds, runner.cpu_seconds = [], []
            for turn in range(rounds):
                log.print(f"{case}, round {turn + 1} of {rounds}")
                for runner in pair if turn % 2 else pair[::-1]:
                    runner.run()
            found += make_rows(case, pair, model, size, export_s)
    return found


def show(rows: Sequence[FirstUseRow]) -> None:
    """Print the rows as a table."""
    table = Table("case", "variant", "backend", "first mask", "CPU", "ratio", "CPU ratio", "export")
    for row in rows:
        export_s = "" if row.export_s is None else f"{row.export_s:.0f} s"
        ratios = f"{row.paired_ratio:.2f}", f"{row.cpu_ratio:.2f}"
        seconds = f"{row.p50_s:.2f} s", f"{row.cpu_s:.2f} s"
        table.add_row(row.case, row.variant, row.backend, *seconds, *ratios, export_s)
    Console(width=None if sys.stdout.isatty() else 100).print(table)


def main(
    model: Annotated[str, typer.Option(help="A model of SAM 2.")] = "sam2.1-tiny",
    image_size: Annotated[int | None, typer.Option(help="Side of the input.")] = None,
    cases: Annotated[str, typer.Option(help="Which to measure, with commas.")] = ",".join(CASES),
    rounds: Annotated[int, typer.Option(min=1, help="New processes of each program.")] = 7,
    dry: Annotated[bool, typer.Option("--dry", help="Do not write the .csv files.")] = False,
) -> None:
    """Measure the first and the second command on a checkpoint, beside transformers."""
    wanted = [case.strip() for case in cases.split(",")]
    try:
        unknown = ", ".join(case for case in wanted if case not in CASES)
        if unknown:
            raise ValueError(f"unknown cases {unknown}: choose of {', '.join(CASES)}")
        if not dry:
            check_columns(FIRST_USE, FirstUseRow)
        rows = measure(model, wanted, rounds, image_size)
    except (OSError, RuntimeError, ValueError) as error:
        print(f"benchmarks.first_use: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    show(rows)
    bars = bars_of(rows)
    for bar in bars:
        print(f"{bar.what}: {bar.figure:.2f}, must be {bar.must} {bar.bar}: {bar.verdict}")
    if not dry:
        append_rows(FIRST_USE, rows)
        append_rows(BARS, bars)


if __name__ == "__main__":
    typer.run(main)

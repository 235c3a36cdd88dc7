"""Peak memory of generating pictures beside the plan: `python -m benchmarks.plan_memory`.

Random weights of the full size are written once, as one official file with all encoders but T5. New
processes load it: one makes pictures through vkrt.load, the others load the transformer alone. What
a process holds after its imports counts for nothing. Exits with 1 where a peak is not as foreseen.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

import vkrt
from benchmarks.generate_results import PLAN_MEMORY, PlanRow
from benchmarks.machine import ROOT, commit, describe_machine, today
from benchmarks.random_sd35 import NoRoomError, write_checkpoint, write_vocabulary
from benchmarks.results import append_rows, check_columns
from benchmarks.rss import forget_peak, peak_rss_mib, rss_mib
from vkrt import VkrtError
from vkrt.cli.generate_options import parse_size
from vkrt.engines.sd35 import Generator
from vkrt.engines.watch import StepInfo
from vkrt.models.sd35.known import KNOWN
from vkrt.weights.sd35 import open_sd35
from vkrt.weights.sd35_fit import PARTS_OF

__all__ = ["BARS", "Task", "judge", "main", "watch"]

MIB = 1024**2
# What vkrt.load and the first call import besides: their memory is not the model's.
LATER = ("tokenizers", "vkrt.backends.eager", "vkrt.weights.lora_stack")
# Least and most that a peak may be of what was foreseen.
BARS: dict[str, tuple[float | None, float | None]] = {"generate": (0.9, 1.1), "load": (None, 1.1)}
STEPS, DECODE = "generate-steps", "generate-decode"
LOADED = ("bf16", "fp32")  # in which the transformer is loaded, from a file in bf16
STORED = "bf16"


@dataclass(frozen=True)
class Task:
    """Say what a process is to do.

    Attributes:
        case: "generate" or "load".
        file: of the weights.
        tokenizers: folder of the vocabulary.
        precision: in which they are loaded.
        width, height: of the pictures, in pixels.
        steps: of each picture.
        calls: pictures, one after the other.
        threads: CPU threads; None leaves the machine's default.
    """

    case: str
    file: str
    tokenizers: str
    precision: str
    width: int
    height: int
    steps: int
    calls: int
    threads: int | None = None


class Peaks:
    """Take down what a process holds at most in each part of its work, in MiB.

    Attributes:
        held: by the process when this was made.
        found: the peak beyond it, by part.

    Raises:
        VkrtError: the system does not tell.
    """

    def __init__(self) -> None:
        for name in LATER:
            import_module(name)
        self.held = known(rss_mib())
        self.found: dict[str, float] = {}
        forget_peak()

    def note(self, part: str) -> None:
        """Take down the peak since the last note as one of a part."""
        peak = known(peak_rss_mib()) - self.held
        self.found[part] = max(peak, self.found.get(part, 0.0))
        forget_peak()


def known(mib: float | None) -> float:
    """Return an amount of memory.

    Raises:
        VkrtError: the system does not tell.
    """
    if mib is None:
        raise VkrtError("this system does not tell how much memory a process holds: run on Linux")
    return mib


def watch(task: Task) -> dict[str, Any]:
    """Return MiB: "held" before anything is loaded, then "found" and "foreseen" by case."""
    return WATCHED[task.case](task)


def generate(task: Task) -> dict[str, Any]:
    """Make pictures, each of another prompt, so that no call finds an embedding."""
    peaks = Peaks()
    model: Generator = vkrt.load(
        task.file,
        backend="eager",
        device="cpu",
        precision=task.precision,
        threads=task.threads,
        tokenizers=task.tokenizers,
    )

    def follow(info: StepInfo) -> None:
        if info.step == info.steps:
            peaks.note(STEPS)

    width, height, count = task.width, task.height, task.steps
    for call in range(task.calls):
        prompt = f"a house by the sea, {call}"
        model.generate(prompt, width=width, height=height, steps=count, seed=call, on_step=follow)
        peaks.note(DECODE)
    plan = model.plan(width, height, steps=count)
    steps = max(phase.peak for name, phase in plan.phases.items() if name != "decode")
    foreseen = {"generate": plan.peak, STEPS: steps, DECODE: plan.phases["decode"].peak}
    found = {"generate": max(peaks.found.values()), **peaks.found}
    return answer(peaks, found, foreseen)


def load(task: Task) -> dict[str, Any]:
    """Load every part of the transformer and hold all of them."""
    peaks = Peaks()
    weights = open_sd35(task.file)
    parts = PARTS_OF["transformer"]
    modules = [weights.load(part, task.precision) for part in parts]
    peaks.note("load")
    del modules
    return answer(
        peaks, peaks.found, {"load": sum(weights.bytes(part, task.precision) for part in parts)}
    )


def answer(peaks: Peaks, found: dict[str, float], foreseen: dict[str, int]) -> dict[str, Any]:
    """Return the figures of a task in MiB."""
    expected = {case: count / MIB for case, count in foreseen.items()}
    return {"held": peaks.held, "found": found, "foreseen": expected}


WATCHED = {"generate": generate, "load": load}


def run_apart(task: Task) -> dict[str, Any]:
    """Watch in a new process."""
    command = [sys.executable, "-m", "benchmarks.plan_memory", "--job", json.dumps(asdict(task))]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def judge(model: str, task: Task, figures: dict[str, Any]) -> list[PlanRow]:
    """Return the rows of a task."""
    machine = describe_machine()
    rows = []
    for case, peak in figures["found"].items():
        least, most = BARS.get(case, (None, None))
        ratio = peak / figures["foreseen"][case]
        holds = (least is None or ratio >= least) and (most is None or ratio <= most)
        made = task.case == "generate"
        rows.append(
            PlanRow(
                date=today(),
                commit=commit(),
                cpu=machine["cpu"],
                threads=task.threads or machine["threads"],
                case=case,
                model=model,
                stored=STORED,
                precision=task.precision,
                photo=f"{task.width}x{task.height}" if made else "",
                steps=task.steps if made else None,
                calls=task.calls if made else 1,
                held_mib=figures["held"],
                peak_mib=peak,
                foreseen_mib=figures["foreseen"][case],
                ratio=ratio,
                at_least=least,
                at_most=most,
                verdict="" if case not in BARS else "reached" if holds else "missed",
                torch=torch.__version__,
            )
        )
    return rows


def show(rows: list[PlanRow]) -> None:
    """Print the rows as a table."""
    table = Table(title=f"{rows[0].model}: peak memory beside what was foreseen, weights in bf16")
    heads = ("held MiB", "peak MiB", "foreseen MiB", "ratio", "bar")
    for name in ("case", "precision", "picture", *heads, "verdict"):
        table.add_column(name, justify="right" if name in heads else "left")
    for row in rows:
        sizes = (row.held_mib, row.peak_mib, row.foreseen_mib)
        bar = " to ".join(f"{each:g}" for each in (row.at_least, row.at_most) if each)
        words = (f"{row.ratio:.3f}", bar, row.verdict)
        table.add_row(row.case, row.precision, row.photo, *(f"{mib:.0f}" for mib in sizes), *words)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


@contextmanager
def folder_of(keep: Path | None) -> Iterator[Path]:
    """Give the folder to write weights to: a temporary one, unless it is named."""
    if keep is None:
        with TemporaryDirectory() as folder:
            yield Path(folder)
    else:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep


def prepare(folder: Path, model: str) -> Path:
    """Write what the tasks read, the weights only if they are not there; return their file."""
    file = folder / f"{model}-random-{STORED}.safetensors"
    if not file.exists():
        write_checkpoint(file, KNOWN[model], STORED)
    write_vocabulary(folder, KNOWN[model].clip_l.vocabulary)
    return file


def main(
    model: Annotated[str, typer.Option(help=f"Of {', '.join(KNOWN)}.")] = "sd3.5-medium",
    size: Annotated[str, typer.Option(help="Of the picture: 512x512.")] = "512x512",
    steps: Annotated[int, typer.Option(min=1, help="Of each picture.")] = 2,
    calls: Annotated[int, typer.Option(min=1, help="Pictures, one after the other.")] = 2,
    precision: Annotated[str, typer.Option(help="That pictures are made in.")] = "bf16",
    keep: Annotated[Path | None, typer.Option(help="Folder to keep the weights in.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    dry: Annotated[bool, typer.Option("--dry", help="Do not write plan_memory.csv.")] = False,
    job: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure whether pictures take the memory that the plan says, and the weights no more."""
    if job:
        print(json.dumps(watch(Task(**json.loads(job)))))
        return
    rows: list[PlanRow] = []
    try:
        if model not in KNOWN:
            raise ValueError(f"unknown model {model}: choose of {', '.join(KNOWN)}")
        side = parse_size(size)
        if not dry:
            check_columns(PLAN_MEMORY, PlanRow)
        with folder_of(keep) as folder:
            file, words = str(prepare(folder, model)), str(folder)
            task = Task(
                "generate",
                file,
                words,
                precision,
                steps=steps,
                calls=calls,
                threads=threads,
                **side,
            )
            loads = [replace(task, case="load", precision=each) for each in LOADED]
            for each in (*loads, task):
                rows += judge(model, each, run_apart(each))
    except (NoRoomError, OSError, ValueError, VkrtError) as error:
        print(f"benchmarks.plan_memory: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except subprocess.CalledProcessError:
        # The process itself has said why.
        raise typer.Exit(2) from None
    show(rows)
    if not dry:
        append_rows(PLAN_MEMORY, rows)
    raise typer.Exit(int(any(row.verdict == "missed" for row in rows)))


if __name__ == "__main__":
    typer.run(main)

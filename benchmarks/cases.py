"""The cases: what is done with the entrants of a contest, and what is taken down of it."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np

from benchmarks.contest import Contest
from benchmarks.machine import ROOT
from benchmarks.measure import measure, rotated
from benchmarks.peers.base import Peer
from benchmarks.photo import clicks_on

__all__ = ["IN_PROCESS", "AloneError", "CaseFigures", "Figures", "Plan", "run_case"]

PAUSE = 0.02
IN_PROCESS = ("encode", "click")


class AloneError(Exception):
    """Say that a variant failed in a process of its own, and with what last line."""


@dataclass(frozen=True)
class Plan:
    """Say how often each thing is done.

    Attributes:
        rounds: samples of encode, and `clicks` of click.
        processes: new ones for each variant, in cold and memory.
        encodes: fresh photos in growth, after `warmups` that do not count.
    """

    rounds: int = 7
    clicks: int = 300
    processes: int = 5
    encodes: int = 2000
    warmups: int = 200


@dataclass(frozen=True)
class Figures:
    """Hold what a case took down of one variant.

    Attributes:
        samples: how many there were.
        seconds: of each, in the order of the rounds; none where time is not the question.
    """

    samples: int
    seconds: Sequence[float] = ()
    peak_rss_mib: float | None = None
    rss_growth_mib: float | None = None


# By the case's name in results.csv, then by the variant's.
CaseFigures: TypeAlias = dict[str, dict[str, Figures]]


def run_case(case: str, contest: Contest, names: Sequence[str], plan: Plan) -> CaseFigures:
    """Return the figures of a case for the named entrants, all of them interleaved.

    Raises:
        AloneError: a variant failed in a process of its own.
    """
    if not names:
        return {}
    return RUNS[case](contest, names, plan)


def peers_of(contest: Contest, names: Sequence[str]) -> dict[str, Peer]:
    """Return the peers of the named entrants."""
    found = {name: contest.entrants[name].peer for name in names}
    return {name: peer for name, peer in found.items() if peer is not None}


def as_figures(samples: dict[str, list[float]]) -> dict[str, Figures]:
    """Return seconds by variant as figures."""
    return {name: Figures(len(seconds), seconds) for name, seconds in samples.items()}


def encode(contest: Contest, names: Sequence[str], plan: Plan) -> CaseFigures:
    """Time photo in, embedding out."""
    calls: dict[str, Callable[[], object]] = {
        name: partial(peer.encode, contest.photo) for name, peer in peers_of(contest, names).items()
    }
    return {"encode": as_figures(measure(calls, plan.rounds, warmups=1, pause=PAUSE))}


def clicker(peer: Peer, photo: np.ndarray, count: int) -> Callable[[], object]:
    """Return a call that answers a click on the photo, each time another of `count`."""
    embedding, clicks = peer.encode(photo), cycle(clicks_on(photo, count))
    return lambda: peer.click(embedding, *next(clicks))


def click(contest: Contest, names: Sequence[str], plan: Plan) -> CaseFigures:
    """Time click in, masks of the photo's size out, on a photo that is set."""
    calls = {
        name: clicker(peer, contest.photo, plan.clicks)
        for name, peer in peers_of(contest, names).items()
    }
    return {"click": as_figures(measure(calls, plan.clicks, warmups=3, pause=PAUSE))}


def alone(task: str, name: str, contest: Contest, photo: Path, **more: Any) -> dict[str, Any]:
    """Return what a task of benchmarks.child tells of a variant in a process of its own.

    Raises:
        AloneError: the process failed.
    """
    assets = {**asdict(contest.assets), "folder": str(contest.assets.folder)}
    job: dict[str, Any] = {"task": task, "variant": name, "assets": assets, "photo": str(photo)}
    job |= {"threads": contest.threads, "asked": time.monotonic(), **more}
    command = [sys.executable, "-m", "benchmarks.child", json.dumps(job)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise AloneError(f"{name} failed in a process of its own: {lines[-1]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def each_alone(
    task: str, contest: Contest, names: Sequence[str], rounds: int, **more: Any
) -> dict[str, list[dict[str, Any]]]:
    """Return what a task tells of each variant in each round, one process after another."""
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with TemporaryDirectory() as folder:
        photo = Path(folder) / "photo.npy"
        np.save(photo, contest.photo)
        for turn in range(rounds):
            for name in rotated(names, turn):
                answers[name].append(alone(task, name, contest, photo, **more))
    return answers


def cold(contest: Contest, names: Sequence[str], plan: Plan) -> CaseFigures:
    """Time a new process until it has masks, and its parts."""
    first = clicks_on(contest.photo, 1)[0]
    answers = each_alone("cold", contest, names, plan.processes + 1, click=first)
    found: CaseFigures = {"cold": {}}
    for name, (_, *rounds) in answers.items():  # the first has put the files in the page cache
        totals = [sum(parts.values()) for parts in rounds]
        found["cold"][name] = Figures(len(totals), totals)
        for part in rounds[0]:
            seconds = [parts[part] for parts in rounds]
            found.setdefault(f"cold-{part}", {})[name] = Figures(len(seconds), seconds)
    return found


def memory(contest: Contest, names: Sequence[str], plan: Plan) -> CaseFigures:
    """Take down the peak memory of processes that load and encode, and while they encode."""
    found: CaseFigures = {"memory": {}, "memory-encode": {}}
    for name, answers in each_alone("memory", contest, names, plan.processes).items():
        for case, part in (("memory", "whole"), ("memory-encode", "encode")):
            peaks = [answer[part] for answer in answers if answer[part] is not None]
            peak = statistics.median(peaks) if peaks else None
            found[case][name] = Figures(len(answers), peak_rss_mib=peak)
    return found


def growth(contest: Contest, names: Sequence[str], plan: Plan) -> CaseFigures:
    """Take down by how much many encodes of fresh photos make a process grow."""
    counts = {"encodes": plan.encodes, "warmups": plan.warmups}
    answers = each_alone("growth", contest, names, 1, **counts)
    return {
        "growth": {name: Figures(plan.encodes, **answer) for name, (answer,) in answers.items()}
    }


RUNS = {"encode": encode, "click": click, "cold": cold, "memory": memory, "growth": growth}

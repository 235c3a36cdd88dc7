"""Interleaved timing: every candidate runs in every round, so that all see the same machine."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

__all__ = ["Ratio", "Summary", "compare", "measure", "rotated", "summarize"]

MIN_FOR_P99 = 299  # below, not even the highest sample bounds it with 95% confidence


@dataclass(frozen=True)
class Summary:
    """Describe samples by their percentiles, in ms, and their number.

    Attributes:
        p99: None below 299 samples, which say too little about it.
    """

    p20: float
    p50: float
    p80: float
    samples: int
    p99: float | None = None


@dataclass(frozen=True)
class Ratio:
    """Say how many times as long a candidate takes as the baseline.

    Attributes:
        of_medians: its median over the baseline's.
        paired: median of the ratios of each round, which drifts of the machine leave alone.
        paired_p20, paired_p80: their spread.
    """

    of_medians: float
    paired: float
    paired_p20: float
    paired_p80: float


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keep the collector from running inside a sample."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """Return the names from place `turn` on, then those before: nobody always runs first."""
    start = turn % len(names)
    return [*names[start:], *names[:start]]


def measure(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    warmups: int = 2,
    clock: Callable[[], float] = time.perf_counter,
    pause: float = 0.0,
) -> dict[str, list[float]]:
    """Return the seconds of each call by name, one sample a round.

    Args:
        calls: what to time.
        rounds: how often each runs, after `warmups` runs that do not count.
        clock: gives seconds.
        pause: seconds of sleep before each sample. Thread pools go on spinning for a while after
            their work; without a pause that would be at the cost of whoever runs next.
    """
    names = list(calls)
    for _ in range(warmups):
        for name in names:
            calls[name]()
    samples: dict[str, list[float]] = {name: [] for name in names}
    with no_garbage_collection():
        for turn in range(rounds):
            gc.collect()
            for name in rotated(names, turn):
                time.sleep(pause)
                start = clock()
                result = calls[name]()
                samples[name].append(clock() - start)
                del result  # freed outside the sample, for everyone alike
    return samples


def summarize(seconds: Sequence[float]) -> Summary:
    """Return the percentiles of samples in seconds."""
    p20, p50, p80, p99 = map(float, np.percentile(seconds, (20, 50, 80, 99)) * 1e3)
    return Summary(p20, p50, p80, len(seconds), p99 if len(seconds) >= MIN_FOR_P99 else None)


def compare(candidate: Sequence[float], baseline: Sequence[float]) -> Ratio:
    """Return the ratio of samples to those of the baseline in the same rounds."""
    each = [a / b for a, b in zip(candidate, baseline, strict=True)]
    p20, p50, p80 = np.percentile(each, (20, 50, 80))
    medians = statistics.median(candidate) / statistics.median(baseline)
    return Ratio(medians, float(p50), float(p20), float(p80))

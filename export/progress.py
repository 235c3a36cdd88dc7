"""How far an export is, told to whoever waits for it; imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable

__all__ = ["Progress", "Report", "ignore"]

# Called with what is being done, such as "image_encoder: tracing", and which share of all work,
# 0 to 1, is done.
Report = Callable[[str, float], None]

# What a stage costs beside the others, roughly; 1 where it is not known.
COSTS = {"image_encoder": 5.0, "mmdit": 20.0, "mmdit_controlled": 25.0, "t5": 10.0}
# The phases of a stage, and which share of its cost lies before each.
PHASES = {"computing what it should give": 0.0, "tracing": 0.3, "checking": 0.8}
# The share of all work that quantizing takes where it is done.
QUANTIZING = 0.8


def ignore(what: str, share: float) -> None:
    """Tell nobody."""


class Progress:
    """Tell a report how far the stages of a bundle are.

    Args:
        report: gets what is told.
        stages: the names of all of them.
        quantized: whether they are quantized once all are written.
    """

    def __init__(self, report: Report, stages: Iterable[str], quantized: bool = False) -> None:
        self._report = report
        self._costs = {name: COSTS.get(name, 1.0) for name in stages}
        self._scale = (1.0 - QUANTIZING if quantized else 1.0) / (sum(self._costs.values()) or 1.0)
        self._done = 0.0

    def start(self, stage: str, phase: str) -> None:
        """Tell that a phase of a stage begins."""
        cost = self._costs.get(stage, 1.0)
        share = self._scale * (self._done + cost * PHASES[phase])
        self._report(f"{stage}: {phase}", min(share, 1.0))

    def finish(self, stage: str) -> None:
        """Count a stage as done."""
        self._done += self._costs.get(stage, 1.0)

    def quantize(self) -> None:
        """Tell that quantizing begins."""
        self._report("quantizing", 1.0 - QUANTIZING)

    def end(self) -> None:
        """Tell that all is done."""
        self._report("done", 1.0)

"""A run of training: what it needs to go on, how parameters move, and its log."""

from __future__ import annotations

import csv
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from vkrt.media.files import write_atomically
from vkrt.models.sam2.model import Sam2

__all__ = [
    "CHECKPOINT",
    "Course",
    "State",
    "annealed",
    "make_optimizers",
    "resume",
    "save_weights",
    "take_steps",
]

CHECKPOINT = "state.pt"


@dataclass
class State:
    """Hold what a run needs to go on."""

    model: Sam2
    averaged: Sam2
    optimizers: list[torch.optim.Optimizer]
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write the state to `path`, whole or not at all."""
        parts = {
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
        }
        temporary = path.with_suffix(".tmp")
        torch.save(parts, temporary)
        os.replace(temporary, path)

    def restore(self, path: Path) -> None:
        """Read the state that `save` wrote."""
        parts = torch.load(path, weights_only=True)
        self.model.load_state_dict(parts["model"])
        self.averaged.load_state_dict(parts["averaged"])
        for optimizer, saved in zip(self.optimizers, parts["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds = parts["step"], parts["seconds"]
        self.history = parts["history"]

    def begin_with(self, weights: dict[str, torch.Tensor]) -> None:
        """Take the weights of another run to begin with."""
        self.model.load_state_dict(weights)
        self.averaged.load_state_dict(weights)

    def set_rate(self, rate: float) -> None:
        """Set the learning rate; groups of parameters may have a share of it."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("share", 1.0)

    def move(self, ema: float) -> None:
        """Take one step along the gradients that have gathered, and average the weights."""
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        # Over the first steps a shorter memory, or the random start would stay in the average.
        self._average(min(ema, self.step / (self.step + 10)))

    @torch.no_grad()
    def _average(self, decay: float) -> None:
        """Move the averaged weights towards the current ones."""
        torch._foreach_lerp_(
            list(self.averaged.parameters()), list(self.model.parameters()), 1 - decay
        )


def annealed(peak: float, warmup: float, progress: float) -> float:
    """Return the rate at `progress` in [0, 1]: a linear warm-up, then a cosine to 1%."""
    if progress < warmup:
        return peak * (progress / warmup + 1e-3)
    along = (progress - warmup) / (1 - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(along, 1))))


def make_optimizers(
    parameters: Iterable[nn.Parameter], weight_decay: float, muon: bool, share: float | None = None
) -> list[torch.optim.Optimizer]:
    """Return what moves the parameters; each optimizer holds some of them.

    Args:
        parameters: all that is to be moved.
        weight_decay: of large weights.
        muon: move the matrices by Muon, the rest by AdamW.
        share: of the learning rate; None is all of it.
    """
    # Norms, biases and embeddings are not decayed.
    every = list(parameters)
    large = [p for p in every if p.ndim >= 2 and p.numel() > 4096]
    small = [p for p in every if not (p.ndim >= 2 and p.numel() > 4096)]
    matrices = [p for p in large if p.ndim == 2] if muon else []
    chosen = {id(p) for p in matrices}
    groups = [
        {
            "params": [p for p in large if id(p) not in chosen],
            "weight_decay": weight_decay,
        },
        {"params": small, "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
    ]
    if matrices:
        # With steps as large as AdamW's, one learning rate does for both.
        found = torch.optim.Muon(
            matrices, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        optimizers.append(found)
    if share is not None:
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["share"] = share
    return optimizers


@dataclass(frozen=True)
class Course:
    """Say how far a run goes, and how often it is logged and saved.

    Attributes:
        steps: of the whole run.
        until: stop at this step; the next call goes on from it. None goes to the end.
        log_every, save_every: steps from one row of the curve, one checkpoint, to the next.
        drawn: what a step draws, and how many of them.
    """

    steps: int
    until: int | None
    log_every: int
    save_every: int
    drawn: tuple[str, int]

    @property
    def last(self) -> int:
        """Return the step to stop at."""
        return self.steps if self.until is None else min(self.until, self.steps)


def resume(state: State, out: Path) -> bool:
    """Go on from the checkpoint of a run's folder; return whether it has one."""
    saved = out / CHECKPOINT
    if not saved.exists():
        return False
    state.restore(saved)
    print(f"going on from step {state.step}", flush=True)
    return True


def take_steps(
    state: State,
    out: Path,
    course: Course,
    advance: Callable[[], dict[str, float]],
    mean: Callable[[list[dict[str, float]]], dict[str, float]],
) -> Sam2:
    """Train to the end of a course and return the averaged model.

    Writes state.pt (to go on from) and curve.csv to `out`.

    Args:
        state: of the run, moved on in place.
        out: folder of the run.
        course: how far to go, and how often to log and save.
        advance: draws what one step needs and takes it; returns its figures.
        mean: of the figures of some steps, as a row of the curve.
    """
    rows: list[dict[str, float]] = []
    what, each = course.drawn
    while state.step < course.last:
        start = time.monotonic()
        rows.append(advance())
        state.seconds += time.monotonic() - start
        if state.step % course.log_every == 0:
            log(state, mean(rows), out / "curve.csv", f"{what}={state.step * each}")
            rows.clear()
        if state.step % course.save_every == 0:
            state.save(out / CHECKPOINT)
    state.save(out / CHECKPOINT)
    return state.averaged


def log(state: State, row: dict[str, float], path: Path, drawn: str) -> None:
    """Append a row to the history and to the CSV; say what was drawn so far."""
    state.history.append({"step": state.step, "minutes": state.seconds / 60, **row})
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(state.history[0]))
        writer.writeheader()
        writer.writerows({k: round(v, 5) for k, v in r.items()} for r in state.history)
    shown = " ".join(f"{k}={v:.4g}" for k, v in state.history[-1].items())
    print(f"{shown} {drawn}", flush=True)


def save_weights(model: Sam2, path: Path) -> None:
    """Write the weights as fp16 safetensors."""
    contents = save({k: v.half().contiguous() for k, v in model.state_dict().items()})
    write_atomically(path, lambda file: file.write(contents))

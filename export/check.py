"""An exported stage held against the module that it came from, on random inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vkrt.backends.onnx import OnnxBackend
from vkrt.errors import BackendError
from vkrt.export.inputs import random_inputs, trial_sizes
from vkrt.export.twin import InFloat64, WithHalfWeights
from vkrt.options import Options
from vkrt.stage import Stage
from vkrt.steps import CutFile

__all__ = [
    "Expectation",
    "Figure",
    "check_stage",
    "compare",
    "expect",
    "refuse_failures",
    "worse_of",
]

# How much further from eager PyTorch an export may be than eager PyTorch is from more bits.
FACTOR = 8.0
# A share of the largest value below which a difference says nothing: with FACTOR some dozen
# roundings of float32, or one of a weight to fp16 (constants that the export computed from
# weights are rounded too, so weights that are whole in fp16 still do not give the same), or one of
# an attention's factors to bf16.
# With int8 only what is broken is to be found: masks tell what its rounding does
# (export/int8/gate.py), and noise, which these inputs are, has ranges that no picture has.
LEAST_RELATIVE = {"fp32": 2.0**-20, "fp16": 2.0**-13, "bf16": 2.0**-9, "int8": 2.0**-4}
SEED = 20


@dataclass
class Figure:
    """Hold how far one output of a stage is from eager PyTorch, at its worst over all trials.

    Attributes:
        stage, output: their names.
        sizes: the sizes of the symbols in each trial, as text.
        max_abs: largest absolute difference.
        max_relative: the same, as a share of the output's largest value in its trial.
        allowed: what max_relative may be.
    """

    stage: str
    output: str
    sizes: list[str]
    max_abs: float
    max_relative: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Tell whether the difference is within what is allowed; NaN is not."""
        return self.max_relative <= self.allowed


@dataclass(frozen=True)
class Trial:
    """Hold the inputs of a stage at some sizes, and what eager PyTorch makes of them."""

    sizes: Mapping[str, int]
    arrays: Sequence[np.ndarray]
    wanted: Sequence[np.ndarray]


@dataclass(frozen=True)
class Expectation:
    """Hold what a stage should give, so that its module need not be there with its export.

    Attributes:
        stage: without its module.
        trials: at several sizes, the smallest first.
        errors: for each output how far eager PyTorch itself is off.
        precision: one of LEAST_RELATIVE, which says how much more an export may be.
    """

    stage: Stage
    trials: Sequence[Trial]
    errors: Sequence[float]
    precision: str


def check_stage(stage: Stage, path: Path | CutFile, precision: str = "fp32") -> list[Figure]:
    """Compare a stage with its .onnx file, or the steps of it, and return each output's figures.

    Eager PyTorch in fp32 is compared with ONNX Runtime on the CPU. Allowed is 8 times the
    difference that eager PyTorch itself has at the smallest sizes: to fp64 for an fp32 file, to
    weights rounded to fp16 for an fp16 file; and at least 2**-17, 2**-10, for attentions in bf16
    2**-6 or, for int8, a half.
    That holds for modules of any size: what runs in fp64 is widened function by function.

    Raises:
        BackendError: ONNX Runtime can't run the file at some of the sizes.
    """
    return compare(expect(stage, precision), path)


def expect(stage: Stage, precision: str = "fp32") -> Expectation:
    """Return what eager PyTorch makes of random inputs, as check_stage compares it."""
    generator = np.random.default_rng(SEED)
    trials = []
    for sizes in trial_sizes(stage):
        arrays = random_inputs(stage, sizes, generator)
        trials.append(Trial(sizes, arrays, run(stage.module, arrays)))
    errors = own_error(stage.module, trials[0], precision)
    return Expectation(replace(stage, module=None), trials, errors, precision)


def compare(expected: Expectation, path: Path | CutFile) -> list[Figure]:
    """Return how far an export is from what is expected, for each output.

    Raises:
        BackendError: ONNX Runtime can't run the file at some of the sizes.
    """
    stage, least = expected.stage, LEAST_RELATIVE[expected.precision]
    backend = OnnxBackend(Options(device="cpu"))
    program = backend.prepare(replace(stage, module=path))
    figures = new_figures(stage, expected.errors, least)
    for trial in expected.trials:
        try:
            found = program(*trial.arrays)
        except Exception as error:
            # ONNX Runtime has no common class for what it raises.
            reason = " ".join(str(error).split())
            sizes = text(trial.sizes)
            raise BackendError(f"{stage.name} fails at {sizes}: {reason:.300}") from error
        for figure, ours, eager in zip(figures, found, trial.wanted, strict=True):
            note(figure, trial.sizes, ours, eager)
    backend.close()
    return figures


def new_figures(stage: Stage, errors: Sequence[float], least: float) -> list[Figure]:
    """Return figures of no trial yet, given what eager PyTorch itself is off by."""
    return [
        Figure(stage.name, port.name, [], 0.0, 0.0, FACTOR * max(error, least))
        for port, error in zip(stage.outputs, errors, strict=True)
    ]


def note(figure: Figure, sizes: Mapping[str, int], found: np.ndarray, wanted: np.ndarray) -> None:
    """Add a trial to a figure."""
    figure.sizes.append(text(sizes))
    figure.max_abs = worse(figure.max_abs, difference(found, wanted))
    figure.max_relative = worse(figure.max_relative, relative(found, wanted))


def worse(one: float, other: float) -> float:
    """Return the larger of two differences; NaN is larger than any."""
    return float(np.maximum(one, other))


def worse_of(one: Figure, other: Figure) -> Figure:
    """Return what two forms of a stage, tried alike, are off by at most in the same output."""
    return replace(
        one,
        max_abs=worse(one.max_abs, other.max_abs),
        max_relative=worse(one.max_relative, other.max_relative),
    )


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Return the largest absolute difference, 0 of nothing."""
    return float(np.abs(np.subtract(one, other, dtype=np.float64)).max(initial=0.0))


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the largest difference as a share of the largest wanted value."""
    scale = difference(wanted, np.zeros_like(wanted))
    return difference(found, wanted) / (scale or 1.0)


def own_error(module: nn.Module, trial: Trial, precision: str) -> list[float]:
    """Return for each output how far eager PyTorch at this precision is from more bits."""
    with WithHalfWeights(module) if precision == "fp16" else InFloat64():
        other = run(module, trial.arrays)
    return [relative(a, b) for a, b in zip(other, trial.wanted, strict=True)]


@torch.inference_mode()
def run(module: nn.Module, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the outputs of a module as arrays."""
    return [output.numpy() for output in module.eval()(*map(torch.from_numpy, arrays))]


def text(sizes: Mapping[str, int]) -> str:
    """Return sizes as messages and tables show them."""
    return " ".join(f"{symbol}={size}" for symbol, size in sizes.items()) or "fixed sizes"


def refuse_failures(figures: Sequence[Figure]) -> None:
    """Refuse an export of which any output is off.

    Raises:
        BackendError: naming the worst output and how many there are.
    """
    failed = [figure for figure in figures if not figure.passed]
    if failed:
        worst = max(failed, key=lambda f: np.nan_to_num(f.max_relative / f.allowed, nan=np.inf))
        raise BackendError(
            f"{len(failed)} of {len(figures)} outputs differ from eager PyTorch, the worst is "
            f"{worst.stage}.{worst.output} by {worst.max_relative:.2g} of its largest value, "
            f"{worst.allowed:.2g} is allowed: the bundle was not written"
        )

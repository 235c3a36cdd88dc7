"""An exported stage held against the module that it came from, on random inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vkrt.backends.onnx import OnnxBackend
from vkrt.errors import BackendError
from vkrt.export.expectation import SEEDS, Expectation, expect
from vkrt.options import Options
from vkrt.stage import Stage
from vkrt.steps import CutFile

__all__ = [
    "FACTORS",
    "Figure",
    "check_stage",
    "compare",
    "hold",
    "refuse_failures",
    "worse_of",
]

# How much further from fp64 an export may be than eager PyTorch is at the smallest sizes: sharp
# attentions to many tokens err 16 times as much as to a few. Rounding weights errs alike anywhere.
FACTORS = {"fp32": 64.0, "fp16": 16.0, "bf16": 64.0, "int8": 64.0}
# A share of an output's spread that is allowed anyhow: 64 roundings of float32, or some of a weight
# to fp16 (constants that the export computed from weights are rounded too, so weights that are
# whole in fp16 still do not give the same), or some of an attention's factors to bf16.
# With int8 only what is broken is to be found: masks tell what its rounding does
# (export/int8/gate.py), and noise, which these inputs are, has ranges that no picture has.
LEAST_ALLOWED = {"fp32": 2.0**-18, "fp16": 2.0**-10, "bf16": 2.0**-6, "int8": 2.0**-1}


@dataclass
class Figure:
    """Hold how far one output of a stage is from PyTorch, at its worst over all trials.

    Attributes:
        stage, output: their names.
        sizes: the sizes of the symbols in each trial, as text.
        max_abs: largest absolute difference.
        max_relative: the same, as a share of the output's spread.
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


def check_stage(stage: Stage, path: Path | CutFile, precision: str = "fp32") -> list[Figure]:
    """Compare a stage with its .onnx file, or the steps of it, and return each output's figures.

    ONNX Runtime on the CPU is compared with PyTorch: in fp64 at the smallest sizes, and at all of
    them where an output has but a few values; in fp32 elsewhere. Differences are shares of the
    output's spread over the inputs. Allowed is 64 times the error that eager PyTorch itself has, or
    16 times that with weights rounded to fp16 for an fp16 file; and at least 2**-18 for fp32,
    2**-10 for fp16, 2**-6 for attentions in bf16 and a half for int8.
    That holds for modules of any size: what runs in fp64 is widened function by function.

    Raises:
        BackendError: ONNX Runtime can't run the file at some of the sizes.
    """
    return hold(expect(stage, precision), path)


def hold(expected: Expectation, path: Path | CutFile) -> list[Figure]:
    """Return how far an export is off, with inputs with which it passes if there are any.

    NaN is no matter of rounding: one is enough.

    Raises:
        BackendError: ONNX Runtime can't run the file at some of the sizes.
    """
    figures = compare(expected, path)
    for seed in SEEDS[1:]:
        if all(figure.passed or np.isnan(figure.max_relative) for figure in figures):
            break
        other = expected.again(seed)
        if other is None:
            break
        figures = compare(replace(other, precision=expected.precision), path)
    return figures


def compare(expected: Expectation, path: Path | CutFile) -> list[Figure]:
    """Return how far an export is from what is expected, for each output.

    Raises:
        BackendError: ONNX Runtime can't run the file at some of the sizes.
    """
    stage = expected.stage
    backend = OnnxBackend(Options(device="cpu"))
    program = backend.prepare(replace(stage, module=path))
    figures = new_figures(expected)
    for trial in expected.trials:
        try:
            found = program(*trial.arrays)
        except Exception as error:
            # ONNX Runtime has no common class for what it raises.
            reason = " ".join(str(error).split())
            sizes = text(trial.sizes)
            raise BackendError(f"{stage.name} fails at {sizes}: {reason:.300}") from error
        for index, figure in enumerate(figures):
            note(figure, trial.sizes, trial.off(index, found[index]))
    backend.close()
    for figure, spread in zip(figures, expected.spreads, strict=True):
        figure.max_relative = figure.max_abs / spread
    return figures


def new_figures(expected: Expectation) -> list[Figure]:
    """Return figures of no trial yet."""
    factor, least = FACTORS[expected.precision], LEAST_ALLOWED[expected.precision]
    outputs = zip(expected.stage.outputs, expected.errors, expected.spreads, strict=True)
    return [
        Figure(expected.stage.name, p.name, [], 0.0, 0.0, max(factor * error / spread, least))
        for p, error, spread in outputs
    ]


def note(figure: Figure, sizes: Mapping[str, int], off: float) -> None:
    """Add a trial to a figure."""
    figure.sizes.append(text(sizes))
    figure.max_abs = worse(figure.max_abs, off)


def worse(one: float, other: float) -> float:
    """Return the larger of two differences; NaN is larger than any."""
    return float(np.maximum(one, other))


def worse_of(one: Figure, other: Figure) -> Figure:
    """Return what two forms of a stage are off by at most in the same output."""
    return replace(
        one,
        sizes=list(dict.fromkeys([*one.sizes, *other.sizes])),
        max_abs=worse(one.max_abs, other.max_abs),
        max_relative=worse(one.max_relative, other.max_relative),
    )


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
            f"{len(failed)} of {len(figures)} outputs differ from PyTorch, the worst is "
            f"{worst.stage}.{worst.output} by {worst.max_relative:.2g} of how much it varies, "
            f"{worst.allowed:.2g} is what rounding explains: the bundle was not written"
        )

"""What a stage should give: PyTorch on random inputs, in fp64 where it counts, and its error."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from vkrt.export.inputs import random_inputs, trial_sizes
from vkrt.export.twin import InFloat64, WithHalfWeights
from vkrt.stage import Stage

__all__ = ["SEEDS", "Expectation", "Trial", "difference", "expect", "spread_of"]

# What rounds every result in float32.
ROUNDING = 2.0**-24
# A range that is less than this share of the largest value is one of roundings.
CONSTANT = 2.0**-16
# The largest error of fewer values than these, in one trial, may be small by luck.
FEW = 64
# A rounding may tip a threshold over, such as whether a pixel belongs to a mask: that fails now and
# then with the inputs of one seed. A wrong graph fails with those of every seed.
SEEDS = (20, 21, 22)


@dataclass(frozen=True)
class Trial:
    """Hold the inputs of a stage at some sizes, and what PyTorch makes of them, in fp64 or fp32."""

    sizes: Mapping[str, int]
    arrays: Sequence[np.ndarray]
    wanted: Sequence[np.ndarray]


@dataclass(frozen=True)
class Expectation:
    """Hold what a stage should give, so that its module need not be there with its export.

    Attributes:
        stage: without its module.
        trials: at several sizes, the smallest first.
        spreads: of each output over the inputs, as `spread_of` says.
        errors: for each output how far eager PyTorch itself is off, at most.
        precision: one of check.FACTORS, which says how much more an export may be.
        again: gives the same for other inputs, by their seed, as long as the module is there.
    """

    stage: Stage
    trials: Sequence[Trial]
    spreads: Sequence[float]
    errors: Sequence[float]
    precision: str
    again: Callable[[int], Expectation | None] = lambda seed: None


def expect(stage: Stage, precision: str = "fp32", seed: int = SEEDS[0]) -> Expectation:
    """Return what PyTorch makes of random inputs, as check_stage compares it."""
    trials = eager_trials(stage, np.random.default_rng(seed))
    outputs = list(zip(*(trial.wanted for trial in trials), strict=True))
    spreads = [spread_of(arrays) for arrays in outputs]
    exact = len(trials) if any(map(hangs_on_few, outputs)) else 1
    found = [more_bits(stage.module, trial) for trial in trials[:exact]]
    eager = trials[:exact]
    if precision == "fp16":
        eager = [with_half_weights(stage.module, trial) for trial in eager]
    errors = [
        max(difference(one.wanted[index], other.wanted[index]) for one, other in pairs)
        for pairs in [list(zip(eager, found, strict=True))]
        for index in range(len(spreads))
    ]
    errors = [
        max(error, ROUNDING * size_of(arrays)) if is_few(arrays) else error
        for error, arrays in zip(errors, outputs, strict=True)
    ]
    return Expectation(
        replace(stage, module=None),
        [*found, *trials[exact:]],
        spreads,
        errors,
        precision,
        repeat(stage, precision),
    )


def repeat(stage: Stage, precision: str) -> Callable[[int], Expectation | None]:
    """Return what expects the same of other inputs; it does not keep the module."""
    held, named = weakref.ref(stage.module), replace(stage, module=None)

    def again(seed: int) -> Expectation | None:
        module = held()
        return None if module is None else expect(replace(named, module=module), precision, seed)

    return again


def eager_trials(stage: Stage, generator: np.random.Generator) -> list[Trial]:
    """Return what eager PyTorch gives at all sizes.

    Where all ports are of one symbol of items, the second trial has the first one's item again, as
    far as PyTorch is concerned without computing it again.
    """
    trials: list[Trial] = []
    for sizes in trial_sizes(stage):
        if trials and is_of_items(stage):
            trials.append(with_more(stage, trials[0], sizes, generator))
            continue
        arrays = random_inputs(stage, sizes, generator)
        trials.append(Trial(sizes, arrays, run(stage.module, arrays)))
    return trials


def is_of_items(stage: Stage) -> bool:
    """Tell whether all ports have the one symbol as their first axis and none elsewhere."""
    ports = (*stage.inputs, *stage.outputs)
    return len(stage.symbols) == 1 and all(
        [isinstance(size, str) for size in port.shape] == [True] + [False] * (len(port.shape) - 1)
        for port in ports
    )


def with_more(
    stage: Stage, first: Trial, sizes: Mapping[str, int], generator: np.random.Generator
) -> Trial:
    """Return a trial whose first item is that of another trial of one."""
    rest = {symbol: size - 1 for symbol, size in sizes.items()}
    arrays = random_inputs(stage, rest, generator)
    made = run(stage.module, arrays)
    return Trial(sizes, joined(first.arrays, arrays), joined(first.wanted, made))


def joined(ones: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return arrays joined along their first axes."""
    return [np.concatenate(pair) for pair in zip(ones, others, strict=True)]


def more_bits(module: nn.Module, trial: Trial) -> Trial:
    """Return a trial computed in fp64."""
    with InFloat64():
        return replace(trial, wanted=run(module, trial.arrays))


def with_half_weights(module: nn.Module, trial: Trial) -> Trial:
    """Return a trial computed with weights that are rounded to fp16."""
    with WithHalfWeights(module):
        return replace(trial, wanted=run(module, trial.arrays))


def is_few(arrays: Sequence[np.ndarray]) -> bool:
    """Tell whether an output has so few values that their errors may be small by luck."""
    return arrays[0].size < FEW


def hangs_on_few(arrays: Sequence[np.ndarray]) -> bool:
    """Tell whether an output has few values, which vary."""
    return is_few(arrays) and range_of(every(arrays)) > CONSTANT * size_of(arrays)


def spread_of(arrays: Sequence[np.ndarray]) -> float:
    """Return how much an output varies over several inputs: half of its range.

    Where an item has many values it is the median of what those of one item range over, of items
    that vary at all: the logits of an object that is not there are all the same large number.
    Of an output that never varies, but for roundings, it is its largest value.
    """
    items = [item for array in arrays for item in np.atleast_1d(array) if item.size >= FEW]
    ranges = [width for width in map(range_of, items) if width > 0]
    width = float(np.median(ranges)) if ranges else range_of(every(arrays))
    size = size_of(arrays)
    return (size or 1.0) if width <= CONSTANT * size else width / 2


def every(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return the values of several arrays in one."""
    return np.concatenate([array.ravel() for array in arrays])


def range_of(array: np.ndarray) -> float:
    """Return the range of an array's values; 0 of none."""
    return float(np.ptp(array.astype(np.float64))) if array.size else 0.0


def size_of(arrays: Sequence[np.ndarray]) -> float:
    """Return the largest absolute value of several arrays."""
    return max(float(np.abs(array).max(initial=0.0)) for array in arrays)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Return the largest absolute difference, 0 of nothing."""
    return float(np.abs(np.subtract(one, other, dtype=np.float64)).max(initial=0.0))


@torch.inference_mode()
def run(module: nn.Module, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the outputs of a module as arrays."""
    return [output.numpy() for output in module.eval()(*map(torch.from_numpy, arrays))]

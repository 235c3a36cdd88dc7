"""What a stage should give: PyTorch on random inputs, in fp64 where it counts, and its error."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch
from torch import nn

from vkrt.export.inputs import random_inputs, trial_sizes
from vkrt.export.twin import InFloat64, WithHalfWeights
from vkrt.stage import Stage, shape_of

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
    """Hold the inputs of a stage at some sizes, and what PyTorch makes of them, in fp64 or fp32.

    Attributes:
        sizes: of the symbols.
        arrays: the inputs.
        wanted: the outputs, or one item of each.
        first: which item of the outputs is the first of `wanted`.
    """

    sizes: Mapping[str, int]
    arrays: Sequence[np.ndarray]
    wanted: Sequence[np.ndarray]
    first: int = 0

    def off(self, index: int, found: np.ndarray) -> float:
        """Return how far an output is from what is wanted of it."""
        wanted = self.wanted[index]
        if wanted.shape != found.shape:
            found = found[self.first : self.first + len(wanted)]
        return difference(found, wanted)


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

    def parted(self) -> tuple[Expectation, Expectation]:
        """Return the same with the smallest trial alone, and with the others if there are any."""
        rest = slice(1, None) if len(self.trials) > 1 else slice(1)
        return self.only(slice(1)), self.only(rest)

    def only(self, some: slice) -> Expectation:
        """Return the same with some of the trials."""

        def again(seed: int) -> Expectation | None:
            other = self.again(seed)
            return None if other is None else other.only(some)

        return replace(self, trials=self.trials[some], again=again)


def expect(stage: Stage, precision: str = "fp32", seed: int = SEEDS[0]) -> Expectation:
    """Return what PyTorch makes of random inputs, as check_stage compares it."""
    generator = np.random.default_rng(seed)
    new, alike = parted_sizes(stage)
    trials = [eager_trial(stage, sizes, generator) for sizes in new]
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
    trials = [*found, *trials[exact:]]
    trials += [with_more(stage, trials[0], sizes, generator) for sizes in alike]
    return Expectation(
        replace(stage, module=None),
        trials,
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


def parted_sizes(stage: Stage) -> tuple[list[dict[str, int]], list[dict[str, int]]]:
    """Return the sizes to compute anew, and those at which items are like that of the first trial.

    Where an item has few values, those of several items have to be known.
    """
    sizes = trial_sizes(stage)
    item = item_symbol(stage)
    alike = [more for more in sizes[1:] if item and set(without(more, item).values()) <= {1}]
    if len(alike) == len(sizes) - 1 and not has_many(stage):
        alike = []
    return [one for one in sizes if one not in alike], alike


def item_symbol(stage: Stage) -> str | None:
    """Return the symbol of items that are computed each for itself; None where there is none.

    It is the first axis of all outputs and of some inputs, and no other axis.
    """
    symbol = stage.outputs[0].shape[0] if stage.outputs[0].shape else None
    ports = (*stage.inputs, *stage.outputs)
    if not isinstance(symbol, str) or any(symbol in port.shape[1:] for port in ports):
        return None
    return symbol if all(port.shape[:1] == (symbol,) for port in stage.outputs) else None


def without(sizes: Mapping[str, int], symbol: str) -> dict[str, int]:
    """Return sizes but that of one symbol."""
    return {name: size for name, size in sizes.items() if name != symbol}


def has_many(stage: Stage) -> bool:
    """Tell whether one item has many values in every output."""
    smallest = dict.fromkeys(stage.symbols, 1)
    return all(prod(shape_of(port, smallest)) >= FEW for port in stage.outputs)


def eager_trial(stage: Stage, sizes: Mapping[str, int], generator: np.random.Generator) -> Trial:
    """Return what eager PyTorch gives at some sizes: of items with many values, the last one."""
    arrays = random_inputs(stage, sizes, generator)
    item = item_symbol(stage)
    if item is None or not has_many(stage):
        return Trial(sizes, arrays, run(stage.module, arrays))
    last = [
        array[-1:] if port.shape[:1] == (item,) else array
        for port, array in zip(stage.inputs, arrays, strict=True)
    ]
    return Trial(sizes, arrays, run(stage.module, last), first=sizes[item] - 1)


def with_more(
    stage: Stage, known: Trial, sizes: Mapping[str, int], generator: np.random.Generator
) -> Trial:
    """Return a trial with another trial's one item: as the last, or the first where it can be told.

    Nobody knows what becomes of the others, except that it must not change this one.
    """
    item = item_symbol(stage)
    assert item is not None
    rest = random_inputs(stage, {**sizes, item: sizes[item] - 1}, generator)
    arrays, last = [], len(stage.symbols) == 1
    for port, one, others in zip(stage.inputs, known.arrays, rest, strict=True):
        pair = [others, one] if last else [one, others]
        arrays.append(np.concatenate(pair) if port.shape[:1] == (item,) else one)
    return Trial(sizes, arrays, known.wanted, first=sizes[item] - 1 if last else 0)


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

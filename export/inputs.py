"""Random inputs of a stage, at sizes that tell its symbols apart."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vkrt.stage import Port, Stage, shape_of

__all__ = ["random_inputs", "traced_sizes", "trial_sizes"]


def traced_sizes(stage: Stage) -> dict[str, int]:
    """Return sizes to trace a stage at.

    torch takes 0 and 1 for constants, and two equal sizes might be taken for the same.
    """
    return {symbol: size for size, symbol in enumerate(stage.symbols, start=2)}


def trial_sizes(stage: Stage) -> list[dict[str, int]]:
    """Return the sizes at which a stage is tried, the smallest first: 1 and more."""
    first, *others = stage.symbols or (None,)
    ones = dict.fromkeys(stage.symbols, 1)
    if first is None:
        return [ones]
    up = {first: 2, **{symbol: size for size, symbol in enumerate(others, start=2)}}
    # The first and the second are alike there; where the first alone is larger they are not.
    return [ones, up, {**ones, first: 2}] if others else [ones, up]


def random_inputs(
    stage: Stage, sizes: Mapping[str, int], generator: np.random.Generator
) -> list[np.ndarray]:
    """Return an array for each input port, with values within the port's bounds."""
    return [random_array(port, shape_of(port, sizes), generator) for port in stage.inputs]


def random_array(port: Port, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Return normal values, or uniform ones where the port states bounds or holds whole numbers."""
    if np.issubdtype(port.dtype, np.floating):
        if port.bounds is None:
            return generator.standard_normal(shape).astype(port.dtype)
        return generator.uniform(*port.bounds, shape).astype(port.dtype)
    low, high = port.bounds or (0, 1)
    return generator.integers(int(low), int(high), shape, endpoint=True).astype(port.dtype)

"""A cut stage as a program: a runtime runs its pieces, the C++ attention what is between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vkrt.backends.host import Closable, as_ports
from vkrt.errors import BackendError
from vkrt.kernels import host_attention
from vkrt.stage import Stage
from vkrt.steps import Attention, CutFile, Piece, Step

__all__ = ["CutProgram", "OpenPiece", "RunPiece", "runs_cut"]

# Gives the outputs of a piece by name from its inputs by name; arrays of its own.
RunPiece = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
OpenPiece = Callable[[Piece], RunPiece]


def runs_cut(stage: Stage) -> bool:
    """Tell whether a stage is cut and the attention between its pieces is the fast one."""
    return isinstance(stage.module, CutFile) and host_attention.IS_NATIVE


class CutProgram(Closable):
    """Run the steps of a stage one after the other.

    Args:
        stage: its module is a CutFile.
        open_piece: gives what runs a piece.
        threads: of the attention between the pieces.
    """

    def __init__(self, stage: Stage, open_piece: OpenPiece, threads: int) -> None:
        self._stage = stage
        steps: Sequence[Step] = stage.module.steps
        self._steps: list[tuple[Step, RunPiece]] = [
            (step, open_piece(step) if isinstance(step, Piece) else attention(step, threads))
            for step in steps
        ]
        self._dead = dead_after(steps, [port.name for port in stage.outputs])

    def __call__(self, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return one array per output port.

        Raises:
            ValueError: an array does not fit its port.
            BackendError: the backend was closed.
        """
        if not self._steps:
            raise BackendError("this model was closed; load it again")
        given, _ = as_ports(self._stage, arrays)
        names = [port.name for port in self._stage.inputs]
        held: dict[str, np.ndarray] = dict(zip(names, given, strict=True))
        for (step, run), dead in zip(self._steps, self._dead, strict=True):
            held |= run({name: held[name] for name in step.inputs})
            for name in dead:
                del held[name]
        return tuple(held[port.name] for port in self._stage.outputs)

    def close(self) -> None:
        """Release the pieces."""
        self._steps = []


def attention(step: Attention, threads: int) -> RunPiece:
    """Return what computes an attention."""

    def attend(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        query, key, value, *bias = (arrays[name] for name in step.inputs)
        # Heads are to the C++ what objects are: attentions beside one another.
        q, k, v = (stacked(part, 2) for part in (query, key, value))
        added = stacked(bias[0], 1) if bias else None
        found = host_attention.attend(q, k, v, added, threads, step.precision)
        return {step.outputs[0]: found.reshape(*query.shape[:-1], value.shape[-1])}

    return attend


def stacked(array: np.ndarray, last: int) -> np.ndarray:
    """Return an array without gaps, all axes but the last so many made one."""
    return np.ascontiguousarray(array).reshape(-1, *array.shape[-last:])


def dead_after(steps: Sequence[Step], wanted: Sequence[str]) -> list[list[str]]:
    """Return for each step the arrays that no later one reads, nor the caller."""
    needed, dead = set(wanted), []
    for step in reversed(steps):
        names = dict.fromkeys((*step.inputs, *step.outputs))
        dead.append([name for name in names if name not in needed])
        needed.update(step.inputs)
    return dead[::-1]

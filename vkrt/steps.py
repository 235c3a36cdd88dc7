"""A stage cut into steps: pieces of its graph that a runtime runs, and attentions between them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PRECISIONS", "Attention", "CutFile", "Piece", "Step", "check_steps"]

PRECISIONS = ("fp32", "bf16")  # of an attention


@dataclass(frozen=True)
class Piece:
    """Name an .onnx file, and what it reads and makes by the names of its graph."""

    path: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Attention:
    """Name the arrays of softmax(query key' / sqrt(depth) + bias) value.

    Attributes:
        inputs: query (..., Q, D), key (..., K, D), value (..., K, V) and, if there is one, bias
            (..., K).
        outputs: what was read, (..., Q, V).
        precision: what the factors of its products may be rounded to, one of PRECISIONS.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str]
    precision: str = "fp32"


Step = Piece | Attention


@dataclass(frozen=True)
class CutFile:
    """Hold the path of a whole .onnx file, as which it serves, and steps that compute the same."""

    path: Path
    steps: tuple[Step, ...]

    @property
    def name(self) -> str:
        """Return the name of the whole file."""
        return self.path.name

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)


def check_steps(steps: Sequence[Step], inputs: Collection[str], outputs: Collection[str]) -> None:
    """Refuse steps that read what no earlier one made, or that do not make all outputs.

    Raises:
        ValueError: says which array it is.
    """
    known = set(inputs)
    for step in steps:
        for name in step.inputs:
            if name not in known:
                raise ValueError(f"a step reads {name!r:.80}, which no earlier one makes")
        if isinstance(step, Attention) and len(step.inputs) not in (3, 4):
            raise ValueError("an attention reads three or four arrays")
        if isinstance(step, Attention) and step.precision not in PRECISIONS:
            raise ValueError(f"an attention has no precision {step.precision!r:.80}")
        known.update(step.outputs)
    for name in outputs:
        if name not in known:
            raise ValueError(f"no step makes {name!r:.80}")

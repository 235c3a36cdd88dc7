"""A Stable Diffusion 3.5 of a few numbers, its stages without weights, and words as tokens."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np

from vkrt.backends.fake import FakeBackend
from vkrt.engines.budget import Budget
from vkrt.engines.sd35 import Generator
from vkrt.models.sd35.config import (
    ClipConfig,
    ControlNetConfig,
    MmditConfig,
    Sd35Config,
    T5Config,
    VaeConfig,
)
from vkrt.models.sd35.stages import PARTS, stage_of
from vkrt.stage import Program, Stage, bind, shape_of

__all__ = ["CONTROL", "TINY", "RowBackend", "Words", "make_generator", "tiny_stages"]

TINY = Sd35Config(
    MmditConfig(4, 2, 8, (0,), pos_embed_max_size=12, context_dim=24, pooled_dim=12),
    clip_l=ClipConfig(8, 2, 2, 16, 8, "quick_gelu", pad=99, vocabulary=100),
    clip_g=ClipConfig(12, 2, 2, 24, 4, "gelu", pad=0, vocabulary=100),
    t5=T5Config(24, 2, 2, 12, 32, vocabulary=100),
    vae=VaeConfig(channels=8, multipliers=(1, 2, 2, 2), groups=2),
    steps=5,
    guidance=4.0,
    sampler="euler",
)
CONTROL = ControlNetConfig(depth=2, heads=2, head_dim=8, pooled_dim=12)


def tiny_stages(*without: str) -> dict[str, Stage]:
    """Return every stage of the tiny model but some, with nothing to compute them."""
    control = SimpleNamespace(config=CONTROL)
    modules = {"controlnet": control, "controlnet_conditioning": control}
    names = [name for name in PARTS if name not in without]
    return {name: stage_of(name, modules.get(name), TINY) for name in names}


class Words:
    """Make a token of each word."""

    def clip(
        self, prompt: str, pad: int, part: str = "", length: int = 77, match_pad: bool = False
    ) -> np.ndarray:
        return padded([1, *map(number, prompt.split()), 97 if match_pad else 98], length, pad)

    def t5(
        self, prompt: str, length: int | None = None, least: int = 77, most: int = 512
    ) -> np.ndarray:
        tokens = [*map(number, prompt.split()), 1]
        return padded(tokens, length or min(max(len(tokens), least), most), 0)


def number(word: str) -> int:
    return zlib.crc32(word.encode()) % 90 + 2


def padded(tokens: list[int], length: int, pad: int) -> np.ndarray:
    return np.array((tokens + [pad] * length)[:length], np.int64)


class RowBackend(FakeBackend):
    """Give each row what depends on that row of the inputs alone, and the same each time.

    Attributes:
        watch: called with the name of each stage before it runs.
        prepared: the stages in the order in which they were loaded.
        closed: how often it was.
    """

    def __init__(self) -> None:
        super().__init__()
        self.watch: Callable[[str], object] = lambda name: None
        self.prepared: list[str] = []
        self.budgets: dict[str, int | None] = {}
        self.closed = 0

    def prepare(self, stage: Stage, budget: int | None = None) -> Program:
        self.prepared.append(stage.name)
        self.budgets[stage.name] = budget
        checked = super().prepare(stage)

        def program(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
            self.watch(stage.name)
            checked(*arrays)
            sizes = bind(stage.inputs, (array.shape for array in arrays))
            batches = [
                (array, port.shape.index("batch"))
                for port, array in zip(stage.inputs, arrays, strict=True)
                if "batch" in port.shape
            ]
            rows = sizes.get("batch", 1)
            keys = [
                sum(weigh(array.take(row, axis)) for array, axis in batches) for row in range(rows)
            ]
            return tuple(
                wave(shape_of(port, sizes), port.shape, keys, arrays[0]) for port in stage.outputs
            )

        return program

    def close(self) -> None:
        self.closed += 1


def weigh(row: np.ndarray) -> float:
    """Return a number that changes with every number of a row."""
    flat = np.asarray(row, np.float64).ravel()
    return float(flat @ np.cos(np.arange(flat.size)))


def wave(
    shape: tuple[int, ...], names: tuple[int | str, ...], keys: list[float], first: np.ndarray
) -> np.ndarray:
    """Return an array whose rows are waves that begin at a row's key, and at each step's time."""
    ramp = np.arange(np.prod(shape), dtype=np.float64).reshape(shape) % 101
    begin = np.zeros(shape)
    if "batch" in names:
        axis = names.index("batch")
        begin += np.reshape(keys, [-1 if i == axis else 1 for i in range(len(shape))])
        # The place in the whole must not tell which row of it this is.
        one = np.arange(np.prod(shape) // shape[axis], dtype=np.float64) % 101
        ramp = np.stack([one.reshape(np.delete(shape, axis))] * shape[axis], axis)
    if "steps" in names:
        begin += first.reshape(-1, *[1] * (len(shape) - 1))
    return np.sin(begin + ramp).astype(np.float32)


def make_generator(
    *without: str,
    backend: RowBackend | None = None,
    budget: Budget | None = None,
    **options: object,
) -> tuple[Generator, RowBackend]:
    """Return an engine of the tiny model without some stages, and its backend."""
    chosen = RowBackend() if backend is None else backend
    stages = tiny_stages(*without)
    made = Generator("tiny", TINY, stages, lambda name: chosen, Words(), budget=budget, **options)
    return made, chosen

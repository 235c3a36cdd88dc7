"""Noise that a seed gives everywhere: the normal numbers of torch's CPU generator, without torch.

They are torch's to about 5e-7, not to the last bit: torch takes its logarithms, sines and cosines
from whatever vector unit it was built for, so that its own last bits differ between machines. Here
each is computed in float64 and rounded, which gives the same numbers wherever vkrt runs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from vkrt.arguments import is_whole, shown
from vkrt.engines.schedule import check_profile
from vkrt.errors import GenerationError

__all__ = ["DTYPES", "LARGEST_SEED", "NoiseStream", "noise", "round_to"]

DTYPES = ("fp32", "bf16", "fp16")

SMALLEST_SEED, LARGEST_SEED = -(2**63), 2**64 - 1
# torch fills tensors of at least so many numbers by blocks of as many.
BLOCK = 16


class NoiseStream:
    """Draw what a torch.Generator("cpu") draws after manual_seed, one tensor after the other.

    Its words are those of MT19937, of which torch seeds with the lowest 32 bits of the seed.
    """

    def __init__(self, seed: int) -> None:
        """Start at a seed.

        Raises:
            GenerationError: the seed is none that torch takes, from -2**63 to 2**64 - 1.
        """
        if not is_whole(seed):
            raise GenerationError(f"a seed must be a whole number, not {shown(seed)}")
        if not SMALLEST_SEED <= seed <= LARGEST_SEED:
            raise GenerationError(f"a seed must be from -2**63 to 2**64 - 1, not {shown(seed)}")
        self._twister = np.random.RandomState(int(seed) % 2**32)
        self._spare: float | None = None

    def normal(self, shape: tuple[int, ...], dtype: str = "fp32") -> np.ndarray:
        """Return float32 of a shape: torch.randn(shape, generator=..., dtype=dtype).

        The half-precision dtypes draw as torch 2.13 does: float32 numbers, then rounded. Versions
        that compute in the dtype itself draw others.

        Raises:
            GenerationError: the dtype is none of "fp32", "bf16" and "fp16".
        """
        check_dtype(dtype)
        size = math.prod(shape)
        if size < BLOCK:
            values = np.array([self._one() for _ in range(size)], np.float64).astype(np.float32)
        else:
            values = self._many(size, whole_fill=dtype == "fp32")
        return round_to(values.reshape(shape), dtype)

    def _many(self, size: int, whole_fill: bool) -> np.ndarray:
        """Return at least 16 numbers (size,): by blocks, a last one over the end of the others.

        torch draws float32 for the whole tensor before it turns them into normal numbers, those
        behind the last whole block too, which are then drawn again; half precision has no such
        draws.
        """
        blocks = size - size % BLOCK
        uniforms = self._uniforms(size if whole_fill else blocks)[:blocks]
        values = np.empty(size, np.float32)
        values[:blocks] = box_muller(uniforms)
        if blocks < size:
            values[-BLOCK:] = box_muller(self._uniforms(BLOCK))
        return values

    def _uniforms(self, count: int) -> np.ndarray:
        """Return (count,) float32 in [0, 1) with 24 bits each."""
        return (self._words(count) & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)

    def _words(self, count: int) -> np.ndarray:
        """Return the next (count,) uint32 of the twister."""
        return self._twister.randint(0, 2**32, count, dtype=np.uint32)

    def _one(self) -> float:
        """Return one number, in float64: they come in pairs, of which the second one waits."""
        if self._spare is not None:
            value, self._spare = self._spare, None
            return value
        turn, length = (self._uniform_double() for _ in range(2))
        radius, angle = math.sqrt(-2 * math.log1p(-length)), 2 * math.pi * turn
        self._spare = radius * math.sin(angle)
        return radius * math.cos(angle)

    def _uniform_double(self) -> float:
        """Return a number in [0, 1) with 53 bits."""
        high, low = (int(word) for word in self._words(2))
        return ((high << 32 | low) & (2**53 - 1)) * 2.0**-53


def noise(
    shape: tuple[int, ...], seed: int, profile: str = "reference", dtype: str = "fp32"
) -> np.ndarray:
    """Return float32 of a shape: the noise that a generation with this seed starts from.

    Args:
        shape: (C, h, w) of one image, each of which has a seed of its own.
        seed: from -2**63 to 2**64 - 1.
        profile: "reference" draws float32 and rounds it, "diffusers" draws in the dtype.
        dtype: "fp32", "bf16" or "fp16", what the model computes in; the noise has its precision.

    Raises:
        GenerationError: the seed, the profile or the dtype is not possible.
    """
    check_profile(profile)
    check_dtype(dtype)
    stream = NoiseStream(seed)
    if profile == "reference":
        return round_to(stream.normal(shape), dtype)
    return stream.normal(shape, dtype)


def round_to(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return float32 that holds the nearest numbers of a dtype, ties to even.

    Raises:
        GenerationError: the dtype is none of "fp32", "bf16" and "fp16".
    """
    check_dtype(dtype)
    if dtype == "fp16":
        return values.astype(np.float16).astype(np.float32)
    if dtype == "bf16":
        bits = values.astype(np.float32).view(np.uint32)
        # bfloat16 is the upper half of float32: half of its last bit, less for an even one.
        return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)
    return values.astype(np.float32)


def box_muller(uniforms: np.ndarray) -> np.ndarray:
    """Turn (count,) float32 uniforms into normal numbers, by blocks of 8 lengths and 8 angles."""
    lengths, turns = uniforms.reshape(-1, 2, BLOCK // 2).swapaxes(0, 1)
    logs = np.log((1 - lengths).astype(np.float64)).astype(np.float32)
    radii = np.sqrt(np.float32(-2) * logs)
    angles = (np.float32(2 * math.pi) * turns).astype(np.float64)
    waves = np.stack((np.cos(angles), np.sin(angles)), axis=1).astype(np.float32)
    return (radii[:, None] * waves).reshape(-1)


def check_dtype(dtype: Any) -> None:
    """Refuse a dtype that does not exist."""
    if dtype not in DTYPES:
        names = ", ".join(f'"{name}"' for name in DTYPES)
        raise GenerationError(f"dtype must be one of {names}, not {dtype!r:.40}")

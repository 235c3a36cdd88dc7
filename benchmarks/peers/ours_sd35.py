"""vkrt's stages of image generation one by one, called with arrays of the host as engines do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vkrt.backends.base import Backend
from vkrt.engines.patches import PATCH, from_patches, to_patches
from vkrt.engines.tables import middle
from vkrt.models.sd35.config import MmditConfig, Sd35Config
from vkrt.stage import Stage

__all__ = ["Conditioned", "OursConditioning", "OursDecode", "OursStep", "StepInputs"]

TIMESTEP = 750.0


@dataclass(frozen=True)
class StepInputs:
    """Hold what one forward of the transformer is asked with; everything is float32.

    Attributes:
        latent: (1, C, h, w) noisy.
        timesteps: (1,), 1000 at pure noise.
        context: (1, L, context_dim) of the text.
        pooled: (1, pooled_dim) of the text.
    """

    latent: np.ndarray
    timesteps: np.ndarray
    context: np.ndarray
    pooled: np.ndarray

    @classmethod
    def draw(cls, config: Sd35Config, width: int, height: int, tokens: int) -> StepInputs:
        """Return random ones of a picture's size in pixels, the same for the same numbers."""
        rng = np.random.default_rng(0)
        mmdit, stride = config.mmdit, config.vae.stride
        shapes = (
            (1, mmdit.channels, height // stride, width // stride),
            (1, tokens, mmdit.context_dim),
            (1, mmdit.pooled_dim),
        )
        latent, context, pooled = (rng.standard_normal(shape, np.float32) for shape in shapes)
        return cls(latent, np.array([TIMESTEP], np.float32), context, pooled)


@dataclass(frozen=True)
class Conditioned:
    """Hold what the transformer takes besides the latent, computed once for all steps.

    Attributes:
        positions: (P, D) of the patches.
        context: (1, L, D) embedded.
        table: (1, M) of the step.
    """

    positions: np.ndarray
    context: np.ndarray
    table: np.ndarray


class OursConditioning:
    """Run the stages before the steps: conditioning and positions, in this order."""

    def __init__(self, stages: Sequence[Stage], config: MmditConfig, backend: Backend) -> None:
        self._config = config
        self._backend = backend
        conditioning, positions = stages
        self._conditioning = backend.prepare(conditioning)
        self._positions = backend.prepare(positions)

    def tables(
        self, inputs: StepInputs, timesteps: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return modulations (steps, 1, M) and embedded context (1, L, D).

        Args:
            inputs: of the forward.
            timesteps: (steps,); None is the one of the inputs.
        """
        asked = inputs.timesteps if timesteps is None else timesteps
        arrays = (self._backend.from_host(a) for a in (asked, inputs.pooled, inputs.context))
        table, context = map(self._backend.to_host, self._conditioning(*arrays))
        return table, context

    def condition(self, inputs: StepInputs) -> Conditioned:
        """Return all that the transformer takes besides the latent."""
        table, context = self.tables(inputs)
        side = self._config.pos_embed_max_size
        places = (middle(size // PATCH, side) for size in inputs.latent.shape[2:])
        (found,) = self._positions(*map(self._backend.from_host, places))
        positions = self._backend.to_host(found).reshape(-1, self._config.dim)
        return Conditioned(positions, context, table[0])


class OursStep:
    """Run the stage mmdit on whatever backend it is made for."""

    def __init__(self, stage: Stage, backend: Backend, conditioned: Conditioned) -> None:
        self._backend = backend
        self._program = backend.prepare(stage)
        fixed = (conditioned.positions, conditioned.context, conditioned.table)
        self._fixed: list[Any] = [backend.from_host(array) for array in fixed]

    def __call__(self, latent: np.ndarray) -> np.ndarray:
        """Return the velocity (1, C, h, w) float32 of a latent (1, C, h, w)."""
        patches = self._backend.from_host(to_patches(latent))
        (velocity,) = self._program(patches, *self._fixed)
        return from_patches(self._backend.to_host(velocity), *latent.shape[2:])


class OursDecode:
    """Run the stage vae_decoder on whatever backend it is made for, the whole picture at once."""

    def __init__(self, stage: Stage, backend: Backend) -> None:
        self._backend = backend
        self._program = backend.prepare(stage)

    def __call__(self, latent: np.ndarray) -> np.ndarray:
        """Return pixels (1, 3, H, W) float32 of a latent (1, C, h, w), neither scaled nor moved."""
        (folded,) = self._program(self._backend.from_host(latent))
        pixels = self._backend.to_host(folded)
        batch, colours, height, stride, width, _ = pixels.shape
        return pixels.reshape(batch, colours, height * stride, width * stride)

"""What the steps of a generation share: computed before the first of them, read by each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vkrt.engines.calls import Calls
from vkrt.engines.patches import PATCH
from vkrt.models.sd35.config import MmditConfig

__all__ = ["Tables", "make_tables", "middle"]


@dataclass(frozen=True)
class Tables:
    """Hold the device arrays that every step reads.

    Attributes:
        modulation: (steps, texts, M) of the transformer.
        context: (texts, L, D) the embedded texts.
        positions: (P, D) of the patches.
        control: (steps, texts, K) of the ControlNet, None without one.
    """

    modulation: Any
    context: Any
    positions: Any
    control: Any = None


def make_tables(
    calls: Calls,
    config: MmditConfig,
    timesteps: np.ndarray,
    texts: tuple[np.ndarray, np.ndarray],
    size: tuple[int, int],
    controlled: bool = False,
) -> Tables:
    """Compute the tables of all steps and texts at once.

    Args:
        calls: run the stages conditioning, positions and, if wanted, controlnet_conditioning.
        config: of the transformer.
        timesteps: (steps,) float32, of 1000.
        texts: context (texts, L, context_dim) and pooled (texts, pooled_dim) float32.
        size: rows and columns of the latent, in latent pixels.
        controlled: whether a ControlNet is to run.
    """
    context, pooled = texts
    calls.enter("conditioning")
    modulation, embedded = calls("conditioning", timesteps, pooled, context)
    control = None
    if controlled:
        calls.enter("controlnet_conditioning")
        (control,) = calls("controlnet_conditioning", timesteps, pooled)
    calls.enter("positions")
    rows, columns = (middle(side // PATCH, config.pos_embed_max_size) for side in size)
    (positions,) = calls("positions", rows, columns)
    flat = positions.reshape(len(rows) * len(columns), config.dim)
    return Tables(modulation, embedded, flat, control)


def middle(count: int, available: int) -> np.ndarray:
    """Return (count,) int64: the indices in the middle of those that are available."""
    return np.arange(count, dtype=np.int64) + (available - count) // 2

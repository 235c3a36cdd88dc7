"""Weights that anyone can make again, for comparison with the official code."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import torch

from vkrt import catalog
from vkrt.models.sam2.model import Sam2

__all__ = ["fill", "write_official"]


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return float32 weights for a parameter, from a generator seeded by its name."""
    generator = np.random.RandomState(zlib.crc32(name.encode()))
    drawn = generator.standard_normal(shape).astype(np.float32)
    if name.endswith("pred_obj_score_head.layers.2.bias"):
        # Objects are there, or every mask would be the same constant.
        return np.full(shape, 6.0, np.float32)
    if len(shape) > 1:
        return drawn * np.float32(1.3 / np.prod(shape[1:]) ** 0.5)
    return np.float32(name.endswith("weight")) + np.float32(0.1) * drawn


def write_official(path: Path, model: str) -> Path:
    """Write a checkpoint of a model as the official code has it, with these weights."""
    with torch.device("meta"):
        shapes = Sam2(catalog.find(model).config).state_dict()
    tensors = {name: torch.from_numpy(fill(name, tuple(t.shape))) for name, t in shapes.items()}
    torch.save({"model": tensors}, path)
    return path

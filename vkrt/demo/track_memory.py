"""What a model sees and remembers while it learns to track."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vkrt.demo.rounds import normalized, reduced_precision
from vkrt.models.sam2.config import MemoryConfig
from vkrt.models.sam2.model import Sam2
from vkrt.models.sam2.video_stages import video_stages

__all__ = ["Modules", "Past", "Picture", "encode", "recall"]


class Modules:
    """Hold a model and the stages of it that remember."""

    def __init__(self, model: Sam2) -> None:
        stages = video_stages(model)
        self.model = model
        self.position = model.position().detach()
        self.condition: nn.Module = stages["memory_attention"].module
        self.remember: nn.Module = stages["memory_encoder"].module
        self.take_masks: nn.Module = stages["mask_prompter"].module


@dataclass(frozen=True)
class Past:
    """Hold what N objects left on a frame: memory (N, L, M), pointer (N, C)."""

    frame: int
    memory: Tensor
    pointer: Tensor
    conditioning: bool


def recall(past: Sequence[Past], frame: int, config: MemoryConfig) -> tuple[Tensor, ...]:
    """Return what memory attention reads on a frame beside the picture, as its ports have it.

    The same frames take part, of the same ages, as in the bank of an engine (vkrt.memory.bank).
    """
    recent = config.num_maskmem - 1
    held = [p for p in past if p.conditioning or frame - p.frame <= recent]
    told = [p for p in past if p.conditioning or frame - p.frame < config.max_obj_ptrs]
    ages = torch.tensor([0 if p.conditioning else frame - p.frame for p in held])
    offsets = torch.tensor([float(frame - p.frame) for p in told]) / (config.max_obj_ptrs - 1)
    count = len(held[0].memory)
    return (
        torch.stack([p.memory for p in held], dim=1),
        ages.int().expand(count, -1),
        torch.stack([p.pointer for p in told], dim=1),
        offsets.expand(count, -1),
        torch.ones(count, len(told), dtype=torch.int32),
    )


@dataclass(frozen=True)
class Picture:
    """Hold the features of one frame: image (1, L, C) and the lateral features."""

    image: Tensor
    high_res: tuple[Tensor, Tensor]


def encode(model: Sam2, pixels: Tensor) -> list[Picture]:
    """Return the features of frames (T, 3, H, W) uint8."""
    with reduced_precision():
        image, s0, s1 = model.encode(normalized(pixels, model.config.image_size))
    image = image.float() + model.no_mem_embed
    parts = zip(image.split(1), s0.split(1), s1.split(1), strict=True)
    return [Picture(one, (fine, coarse)) for one, fine, coarse in parts]

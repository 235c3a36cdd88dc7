"""Simulated sessions: a first prompt, then corrections, on a batch of scenes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vkrt.demo.losses import grouping_loss, overlap_of, round_loss
from vkrt.demo.prompts import noisy_boxes, sample_clicks
from vkrt.media.image import MEAN, STD
from vkrt.models.sam2.blocks import from_blocks
from vkrt.models.sam2.model import Sam2
from vkrt.models.sam2.prompt_encoder import PAD

__all__ = ["step_loss"]

BOX_LABELS = (2, 3)
BOX_SHARE = 0.2
BOX_WEIGHT = 3.0


def normalized(pixels: Tensor, size: int) -> Tensor:
    """Return (B, 3, H, W) uint8 pixels as the model's input (B, 3, size, size) float32."""
    mean = torch.tensor(MEAN).view(1, 3, 1, 1) * 255
    std = torch.tensor(STD).view(1, 3, 1, 1) * 255
    values = (pixels.float() - mean) / std
    if values.shape[-1] == size:
        return values
    return F.interpolate(values, size, mode="bilinear", antialias=True)


def as_map(features: Tensor) -> Tensor:
    """Return features in block order, (B, G * G, ..., C), as a map (B, C, F * G, F * G)."""
    return from_blocks(features.flatten(1, -2).transpose(1, 2), math.isqrt(features.shape[1]))


@contextmanager
def reduced_precision() -> Iterator[None]:
    """Run what follows in bfloat16 where that is safe; losses and prompts stay in float32."""
    # The CPU's flash attention is slower than the plain form on windows this small.
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        yield


def first_prompts(masks: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a box for a fifth of the objects, a click for the others.

    Returns:
        points (N, 2, 2), labels (N, 2) padded where there is only a click, and whether each
        is a click (N,).
    """
    clicks = torch.stack((sample_clicks(masks, rng), torch.zeros(len(masks), 2)), dim=1)
    corners = noisy_boxes(masks, rng).view(-1, 2, 2)
    is_click = torch.rand(len(masks), generator=rng) > BOX_SHARE
    points = torch.where(is_click.view(-1, 1, 1), clicks, corners)
    labels = torch.where(is_click.view(-1, 1), torch.tensor([[1, PAD]]), torch.tensor([BOX_LABELS]))
    return points, labels, is_click


def correction(shown: Tensor, masks: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Click where the shown masks (N, H, W) bool are wrong: (N, 1, 2) and labels (N, 1)."""
    missed, extra = masks & ~shown, shown & ~masks
    # A sum of booleans is slow, and every other row tells as much.
    wants_more = missed[:, ::2].sum((1, 2)) >= extra[:, ::2].sum((1, 2))
    region = torch.where(wants_more.view(-1, 1, 1), missed, extra)
    return sample_clicks(region, rng).unsqueeze(1), wants_more.long().unsqueeze(1)


@dataclass(frozen=True)
class Asked:
    """Hold what every prompt of a batch shares: the features of its picture, and its scale.

    scale is pixels of the model's input for a pixel of the scene.
    """

    model: Sam2
    image: Tensor
    high_res: tuple[Tensor, Tensor]
    scale: float

    def decode(
        self, points: Tensor, labels: Tensor, previous: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return logits (N, 4, h, w) and predicted IoU (N, 4) of prompts, float32.

        Args:
            points: (N, P, 2) x, y in pixels of the scene.
            labels: (N, P) kinds of the points.
            previous: (N, 1, h, w) logits of the round before.
        """
        # A last pad token stands where a box might, as in inference.
        points, labels = F.pad(points * self.scale, (0, 0, 0, 1)), F.pad(labels, (0, 1), value=PAD)
        with reduced_precision():
            logits, iou, _, _ = self.model.decode(
                self.image, self.high_res, points, labels, previous
            )
        return logits.float(), iou.float()


def boxes_loss(
    asked: Asked, masks: Tensor, target: Tensor, rng: torch.Generator
) -> tuple[Tensor, float]:
    """Return the loss and the mean IoU of the answers to the box of each mask (N, H, W).

    Boxes take longer to learn than clicks, whose place is on the object itself; so every object
    is asked for by its box as well.
    """
    corners = noisy_boxes(masks, rng).view(-1, 2, 2)
    logits, iou = asked.decode(corners, torch.tensor([BOX_LABELS]).expand(len(masks), -1))
    unambiguous = torch.zeros(len(masks), dtype=torch.bool)
    loss = round_loss(logits, iou, target, unambiguous)
    return loss, overlap_of(logits[:, :1].detach(), target).mean().item()


def step_loss(
    model: Sam2,
    pixels: Tensor,
    masks: Tensor,
    rounds: int,
    grouping: float,
    rng: torch.Generator,
) -> tuple[Tensor, list[float]]:
    """Run all rounds of a batch, then ask for each object by its box alone.

    Args:
        model: what learns.
        pixels: (B, 3, H, W) uint8 of any size; the model sees them at its own, as in an engine.
        masks: (B, K, H, W) bool of K objects a picture.
        rounds: predictions an object: the first, then corrections.
        grouping: weight of the grouping loss; at 0 it is not computed.
        rng: the source of randomness.

    Returns:
        the loss, and the mean IoU of the grouping (NaN at 0), of each round and of the boxes.
    """
    scenes, objects = masks.shape[:2]
    size = model.config.mask_size
    with reduced_precision():
        image, s0, s1 = model.encode(normalized(pixels, model.config.image_size))
    image = image + model.no_mem_embed
    masks = masks.flatten(0, 1)
    target = F.adaptive_avg_pool2d(masks.float().unsqueeze(1), size).squeeze(1)
    total, ious = torch.zeros(()), [math.nan]
    if grouping:
        clicks = (sample_clicks(masks, rng) * size / masks.shape[-1]).floor()
        features = as_map(image), as_map(s0), as_map(s1)
        loss, ious[0] = grouping_loss(features, clicks.view(scenes, objects, 2), target)
        total = rounds * grouping * loss

    image, s0, s1 = (t.repeat_interleave(objects, dim=0) for t in (image, s0, s1))
    asked = Asked(model, image, (s0, s1), model.config.image_size / masks.shape[-1])
    points, labels, ambiguous = first_prompts(masks, rng)
    previous: Tensor | None = None
    for index in range(rounds):
        logits, iou = asked.decode(points, labels, previous)
        total = total + round_loss(logits, iou, target, ambiguous & (index == 0))
        with torch.no_grad():
            chosen = iou[:, 1:].argmax(dim=1) + 1 if index == 0 else torch.zeros_like(labels[:, 0])
            previous = logits[torch.arange(len(logits)), chosen].unsqueeze(1).detach()
            ious.append(overlap_of(previous, target).mean().item())
            if index + 1 < rounds:
                shown = F.interpolate(previous, masks.shape[-1], mode="bilinear")[:, 0] > 0
                point, label = correction(shown, masks, rng)
                points, labels = torch.cat((points, point), 1), torch.cat((labels, label), 1)
    loss, boxed = boxes_loss(asked, masks, target, rng)
    return (total + BOX_WEIGHT * loss) / (rounds + BOX_WEIGHT), [*ious, boxed]

"""Simulated sessions: a first prompt, then corrections, on a batch of scenes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vkrt.demo.losses import grouping_loss, overlap_of, round_loss
from vkrt.demo.prompts import noisy_boxes, sample_clicks
from vkrt.media.image import MEAN, STD
from vkrt.models.sam2.model import Sam2
from vkrt.models.sam2.prompt_encoder import PAD

__all__ = ["step_loss"]

BOX_LABELS = (2, 3)
BOX_SHARE = 0.2
BOX_WEIGHT = 3.0


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
    wants_more = missed.sum((1, 2)) >= extra.sum((1, 2))
    region = torch.where(wants_more.view(-1, 1, 1), missed, extra)
    return sample_clicks(region, rng).unsqueeze(1), wants_more.long().unsqueeze(1)


def decode_boxes(
    model: Sam2, features: tuple[Tensor, Tensor, Tensor], masks: Tensor, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return logits (N, 4, h, w) and predicted IoU (N, 4) for the box of each mask (N, H, W).

    Boxes take longer to learn than clicks, whose place is on the object itself; so every object
    is asked for by its box as well.
    """
    count, size = len(masks), model.config.mask_size
    points = F.pad(noisy_boxes(masks, rng).view(-1, 2, 2), (0, 0, 0, 1))
    labels = torch.tensor([[*BOX_LABELS, PAD]]).expand(count, -1)
    image, s0, s1 = features
    with reduced_precision():
        logits, iou, _, _ = model.decode(
            image, (s0, s1), points, labels, torch.zeros(count, 1, size, size), torch.zeros(count)
        )
    return logits.float(), iou.float()


def step_loss(
    model: Sam2,
    pixels: Tensor,
    masks: Tensor,
    rounds: int,
    grouping: float,
    rng: torch.Generator,
) -> tuple[Tensor, list[float]]:
    """Run all rounds of a batch, then ask for each object by its box alone.

    Returns:
        the loss, and the mean IoU of the grouping, of each round and of the boxes.
    """
    scenes, objects = masks.shape[:2]
    size = model.config.mask_size
    mean = torch.tensor(MEAN).view(1, 3, 1, 1) * 255
    std = torch.tensor(STD).view(1, 3, 1, 1) * 255
    with reduced_precision():
        image, s0, s1 = model.encode((pixels.float() - mean) / std)
    image = image + model.no_mem_embed.view(1, -1, 1, 1)
    masks = masks.flatten(0, 1)
    target = F.adaptive_avg_pool2d(masks.float().unsqueeze(1), size).squeeze(1)
    clicks = (sample_clicks(masks, rng) * size / masks.shape[-1]).floor()
    loss, iou0 = grouping_loss((image, s0, s1), clicks.view(scenes, objects, 2), target)
    total, ious = rounds * grouping * loss, [iou0]

    image, s0, s1 = (t.repeat_interleave(objects, dim=0) for t in (image, s0, s1))
    points, labels, ambiguous = first_prompts(masks, rng)
    previous = torch.zeros(len(masks), 1, size, size)
    has_mask = torch.zeros(len(masks))
    for index in range(rounds):
        # A last pad token stands where a box might, as in inference.
        padded = F.pad(points, (0, 0, 0, 1)), F.pad(labels, (0, 1), value=PAD)
        with reduced_precision():
            logits, iou, _, _ = model.decode(image, (s0, s1), *padded, previous, has_mask)
        logits, iou = logits.float(), iou.float()
        total = total + round_loss(logits, iou, target, ambiguous & (index == 0))
        with torch.no_grad():
            chosen = iou[:, 1:].argmax(dim=1) + 1 if index == 0 else torch.zeros_like(labels[:, 0])
            previous = logits[torch.arange(len(logits)), chosen].unsqueeze(1).detach()
            ious.append(overlap_of(previous, target).mean().item())
            has_mask = torch.ones(len(masks))
            shown = F.interpolate(previous, masks.shape[-1], mode="bilinear")[:, 0] > 0
            point, label = correction(shown, masks, rng)
        points, labels = torch.cat((points, point), 1), torch.cat((labels, label), 1)
    logits, iou = decode_boxes(model, (image, s0, s1), masks, rng)
    unambiguous = torch.zeros(len(masks), dtype=torch.bool)
    total = total + BOX_WEIGHT * round_loss(logits, iou, target, unambiguous)
    ious.append(overlap_of(logits[:, :1], target).mean().item())
    return total / (rounds + BOX_WEIGHT), ious

"""How much arithmetic a model is: its matrix products, convolutions and attention."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import Sam2Model

from benchmarks.peers.transformers_sam2 import oracle_config
from vkrt.models.sam2.config import Sam2Config
from vkrt.models.sam2.model import Sam2
from vkrt.models.sam2.stages import image_stages
from vkrt.stage import Port, Stage

__all__ = ["own_flops", "plain_flops", "stage_flops"]

STAGES = {"encode": "image_encoder", "click": "mask_decoder"}
ONE_CLICK = {"images": 1, "prompts": 1, "points": 2}  # the second point is the pad


@torch.no_grad()
def count(call: Callable[[], object]) -> int:
    """Return the floating point operations of a call, a multiply-add being two."""
    # The counter knows plain products; the CPU's fused attention would count as nothing.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        call()
    return int(counter.get_total_flops())


def placeholder(port: Port, dimensions: Mapping[str, int]) -> torch.Tensor:
    """Return a tensor without memory for a port, with its symbolic dimensions set."""
    shape = [dimensions[d] if isinstance(d, str) else d for d in port.shape]
    return torch.zeros(shape, dtype=getattr(torch, port.dtype), device="meta")


def stage_flops(stage: Stage, **dimensions: int) -> int:
    """Return the operations of one call of a stage."""
    inputs = [placeholder(port, dimensions) for port in stage.inputs]
    module = copy.deepcopy(stage.module).to("meta")  # shapes only: nothing is computed
    return count(lambda: module(*inputs))


def own_flops(config: Sam2Config) -> dict[str, int]:
    """Return the operations of vkrt's encode and click."""
    stages = image_stages(Sam2(config).eval().requires_grad_(False))
    return {case: stage_flops(stages[name], **ONE_CLICK) for case, name in STAGES.items()}


def plain_flops(config: Sam2Config) -> dict[str, int]:
    """Return the operations of encode and click as transformers' model has them."""
    model = Sam2Model(oracle_config(config)).eval().requires_grad_(False).to("meta")
    side = config.image_size
    pixels = torch.zeros(1, 3, side, side, device="meta")
    points = torch.zeros(1, 1, 1, 2, device="meta")
    labels = torch.ones(1, 1, 1, dtype=torch.int64, device="meta")
    with torch.no_grad():
        features = model.get_image_embeddings(pixels)
    return {
        "encode": count(lambda: model.get_image_embeddings(pixels)),
        "click": count(
            lambda: model(image_embeddings=features, input_points=points, input_labels=labels)
        ),
    }

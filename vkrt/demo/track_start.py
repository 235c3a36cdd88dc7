"""The first values of the memory modules, for a model that knows single pictures already."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vkrt.models.sam2.memory_attention import MemoryAttentionLayer
from vkrt.models.sam2.memory_encoder import FuserBlock
from vkrt.models.sam2.model import Sam2
from vkrt.models.sam2.rotary import THETA

__all__ = ["prepare_memory"]

OUTPUT_SCALE = 0.2
FUSER_SCALE = 0.1
# Seen from the own place, logits fall by 1 over about two pixels of stride 16.
PLACE_BIAS = 1.8
# Radians a pixel: channels that turn more slowly tell no neighbours apart.
SLOWEST = 0.06


@torch.no_grad()
def prepare_memory(model: Sam2, pixels: Tensor) -> None:
    """Let tracking begin where pictures end, in place.

    What memory attention gives is at first nearly the picture's own embedding, which the mask
    decoder can read, and a pixel looks for memories of its own place and around it.

    Args:
        model: whose image modules are trained.
        pixels: (B, 3, S, S) normalized pictures, on which embeddings are measured.
    """
    for module in model.memory_attention.modules():
        if isinstance(module, MemoryAttentionLayer):
            outputs = module.self_attn.out_proj, module.cross_attn_image.out_proj, module.linear2
            for output in outputs:
                output.weight.mul_(OUTPUT_SCALE)
            for projection in (module.cross_attn_image.q_proj, module.cross_attn_image.k_proj):
                projection.bias.copy_(place_bias(len(projection.bias)))
    for module in model.memory_encoder.modules():
        if isinstance(module, FuserBlock):
            nn.init.constant_(module.gamma, FUSER_SCALE)
    raw = model.encode(pixels)[0].flatten(0, 1)
    weight, bias = best_line(F.layer_norm(raw, raw.shape[-1:]), raw + model.no_mem_embed[0])
    model.memory_attention.norm.weight.copy_(weight)
    model.memory_attention.norm.bias.copy_(bias)


def place_bias(channels: int) -> Tensor:
    """Return a vector (C,) for queries and keys alike: turned by two places, it meets itself.

    The product of the two peaks where the places agree (vkrt.models.sam2.rotary).
    """
    pairs = channels // 4
    speeds = THETA ** (-torch.arange(pairs) / pairs)
    along_x = PLACE_BIAS * (speeds > SLOWEST)
    return torch.cat((along_x, along_x)).repeat_interleave(2)


def best_line(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return slope and offset (C,) of the line from x to y (L, C), by least squares a channel."""
    x_mean, y_mean = x.mean(0), y.mean(0)
    x = x - x_mean
    slope = (x * (y - y_mean)).mean(0) / x.square().mean(0).clamp(min=1e-6)
    return slope, y_mean - slope * x_mean

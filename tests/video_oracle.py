"""The independent oracle of tracking: transformers' Sam2VideoModel, small, and our twin of it."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Sam2VideoModel

from benchmarks.peers.transformers_video import video_config, video_twin
from vkrt.models.sam2.blocks import in_blocks
from vkrt.models.sam2.config import HieraConfig, MemoryConfig, Sam2Config

__all__ = ["blocks", "maps", "relative_error", "small_config", "video_oracle", "video_twin"]


def small_config(version: str, image_size: int = 96) -> Sam2Config:
    """Return a small SAM 2; transformers has 64 channels of memory written into its code."""
    return Sam2Config(
        version=version,
        trunk=HieraConfig(8, 1, (1, 1, 1, 1), (2,), window_spec=(8, 4, 6, 8), pos_embed_bkg=8),
        memory=MemoryConfig(mem_dim=64, num_layers=2, ffn_dim=48),
        image_size=image_size,
        hidden_dim=128,
        decoder_heads=2,
        decoder_mlp_dim=32,
    )


@torch.no_grad()
def video_oracle(config: Sam2Config, seed: int = 0) -> Sam2VideoModel:
    """Return transformers' model with random weights, none of them at a neutral value."""
    torch.manual_seed(seed)
    model = Sam2VideoModel(video_config(config)).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 or "embed" in name:
            parameter.add_(torch.randn_like(parameter) * 0.1)
        elif parameter.ndim == 2:
            # Weights of deviation 0.02 would make attention even and hide what it looks at.
            parameter.mul_(4.0)
        if not parameter.any():
            parameter.normal_(std=0.5)
    shared = model.shared_image_embedding.positional_embedding
    model.prompt_encoder.shared_embedding.positional_embedding.copy_(shared)
    return model


def maps(pixels: Tensor) -> Tensor:
    """Bring pixels (N, L, C) to maps (N, C, G, G)."""
    grid = round(pixels.shape[1] ** 0.5)
    return pixels.transpose(1, 2).unflatten(2, (grid, grid))


def blocks(features: Tensor, grid: int) -> Tensor:
    """Bring high resolution features (N, C, F * G, F * G) to what our stages take."""
    return in_blocks(features.permute(0, 2, 3, 1), grid)


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Return the largest difference relative to the largest wanted value; NaN is infinite."""
    assert got.shape == wanted.shape
    error = ((got - wanted).abs().max() / wanted.abs().max()).item()
    return error if error == error else float("inf")

"""The autoencoder of diffusers with random weights, and its weights by our names."""

from __future__ import annotations

import re

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from vkrt.models.sd35.config import VaeConfig

__all__ = ["TINY", "make_oracle", "our_weights", "randomize"]

# All four levels and the stride of 8, a thousandth of the weights.
TINY = VaeConfig(channels=8, latent_channels=4, groups=4)

NAMES = (
    (r"(encoder\.)down_blocks\.(\d+)\.downsamplers\.0\.", r"\1down.\2.downsample."),
    (r"(encoder\.)down_blocks\.(\d+)\.resnets\.", r"\1down.\2.block."),
    (r"(decoder\.)up_blocks\.(\d+)\.upsamplers\.0\.", r"\1up.\2.upsample."),
    (r"(decoder\.)up_blocks\.(\d+)\.resnets\.", r"\1up.\2.block."),
    (r"mid_block\.resnets\.0\.", "mid.block_1."),
    (r"mid_block\.resnets\.1\.", "mid.block_2."),
    (r"mid_block\.attentions\.0\.", "mid.attn_1."),
    (r"attn_1\.group_norm\.", "attn_1.norm."),
    (r"attn_1\.to_([qkv])\.", r"attn_1.\1."),
    (r"attn_1\.to_out\.0\.", "attn_1.proj_out."),
    (r"conv_shortcut\.", "nin_shortcut."),
    (r"conv_norm_out\.", "norm_out."),
)


def make_oracle(config: VaeConfig) -> AutoencoderKL:
    """Return diffusers' autoencoder of a config, no two of its numbers alike."""
    levels = len(config.multipliers)
    oracle = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(config.channels * factor for factor in config.multipliers),
        layers_per_block=config.blocks,
        latent_channels=config.latent_channels,
        norm_num_groups=config.groups,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    randomize(oracle)
    return oracle.eval()


@torch.no_grad()
def randomize(module: nn.Module) -> None:
    """Give norms and biases values too, which they have not when they are new."""
    generator = torch.Generator().manual_seed(5)
    for parameter in module.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)


def our_weights(oracle: AutoencoderKL, part: str) -> dict[str, Tensor]:
    """Return the weights of "encoder" or "decoder" as the original checkpoint names them."""
    levels = len(oracle.config.block_out_channels)
    found = {}
    for name, value in oracle.state_dict().items():
        if name.startswith(f"{part}."):
            for pattern, ours in NAMES:
                name = re.sub(pattern, ours, name)
            name = re.sub(r"up\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}", name)
            linear = "attn_1" in name and value.ndim == 2
            found[name] = value[:, :, None, None] if linear else value
    return found

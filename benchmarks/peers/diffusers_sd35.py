"""diffusers' transformer and autoencoder, on the very tensors of our modules."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import Tensor, nn

from benchmarks.peers.ours_sd35 import StepInputs
from vkrt.models.sd35.config import MmditConfig, VaeConfig
from vkrt.weights.sd35_names import to_diffusers

__all__ = ["DiffusersDecode", "DiffusersStep", "empty_autoencoder", "empty_transformer"]

ENCODER = "encoder."


def empty_transformer(config: MmditConfig) -> SD3Transformer2DModel:
    """Return diffusers' transformer of a shape on the meta device: without values."""
    with torch.device("meta"):
        model = SD3Transformer2DModel(
            sample_size=config.patch * config.pos_embed_max_size,
            patch_size=config.patch,
            in_channels=config.channels,
            out_channels=config.channels,
            num_layers=config.depth,
            attention_head_dim=config.head_dim,
            num_attention_heads=config.heads,
            joint_attention_dim=config.context_dim,
            caption_projection_dim=config.dim,
            pooled_projection_dim=config.pooled_dim,
            pos_embed_max_size=config.pos_embed_max_size,
            dual_attention_layers=config.dual_blocks,
            qk_norm="rms_norm",
        )
    return model.eval().requires_grad_(False)


def empty_autoencoder(config: VaeConfig) -> AutoencoderKL:
    """Return diffusers' autoencoder of a shape on the meta device: without values."""
    levels = len(config.multipliers)
    with torch.device("meta"):
        model = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(config.channels * factor for factor in config.multipliers),
            layers_per_block=config.blocks,
            latent_channels=config.latent_channels,
            norm_num_groups=config.groups,
            scaling_factor=config.scaling,
            shift_factor=config.shift,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    return model.eval().requires_grad_(False)


def own_tensors(modules: Iterable[nn.Module]) -> dict[str, Tensor]:
    """Return the tensors of our modules, by their official names."""
    return {name: tensor for module in modules for name, tensor in module.state_dict().items()}


def share_transformer(config: MmditConfig, modules: Iterable[nn.Module]) -> SD3Transformer2DModel:
    """Return diffusers' transformer whose weights are those of our modules, in their memory.

    Its q, k and v are rows of ours. Only the two modulations whose halves diffusers has the other
    way round are copies.

    Args:
        modules: of conditioning, positions and denoiser.
    """
    model = empty_transformer(config)
    tensors = to_diffusers("transformer", own_tensors(modules), config.depth)
    model.load_state_dict(tensors, strict=True, assign=True)
    return model


def share_decoder(config: VaeConfig, module: nn.Module) -> AutoencoderKL:
    """Return diffusers' autoencoder whose decoder has the weights of ours, in their memory.

    Raises:
        ValueError: the weights of one are not those of the other.
    """
    model = empty_autoencoder(config)
    tensors = to_diffusers("vae", own_tensors([module]), len(config.multipliers))
    result = model.load_state_dict(tensors, strict=False, assign=True)
    missing = [name for name in result.missing_keys if not name.startswith(ENCODER)]
    if missing or result.unexpected_keys:
        raise ValueError(f"missing {missing}, unexpected {result.unexpected_keys}")
    return model


class DiffusersStep:
    """Run diffusers' transformer as its pipeline does: every step from timestep and text on."""

    def __init__(
        self, config: MmditConfig, modules: Iterable[nn.Module], inputs: StepInputs
    ) -> None:
        self.model = share_transformer(config, modules)
        self._fixed = {
            "timestep": torch.from_numpy(inputs.timesteps),
            "encoder_hidden_states": torch.from_numpy(inputs.context),
            "pooled_projections": torch.from_numpy(inputs.pooled),
        }

    @torch.inference_mode()
    def __call__(self, latent: np.ndarray) -> np.ndarray:
        """Return the velocity (1, C, h, w) float32 of a latent (1, C, h, w)."""
        hidden = torch.from_numpy(latent)
        (velocity,) = self.model(hidden_states=hidden, **self._fixed, return_dict=False)
        return velocity.numpy()


class DiffusersDecode:
    """Decode with diffusers' autoencoder, the whole picture at once."""

    def __init__(self, config: VaeConfig, module: nn.Module) -> None:
        self.model = share_decoder(config, module)

    @torch.inference_mode()
    def __call__(self, latent: np.ndarray) -> np.ndarray:
        """Return pixels (1, 3, H, W) float32 of a latent (1, C, h, w), neither scaled nor moved."""
        (pixels,) = self.model.decode(torch.from_numpy(latent), return_dict=False)
        return pixels.numpy()

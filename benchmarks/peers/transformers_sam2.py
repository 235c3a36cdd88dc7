"""transformers' Sam2Model with the shape of one of our configs, and our model with its weights."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Sam2Config as OracleConfig
from transformers import Sam2HieraDetConfig, Sam2Model, Sam2VisionConfig
from transformers.utils.logging import disable_progress_bar

from vkrt.models.sam2.config import Sam2Config
from vkrt.models.sam2.model import Sam2
from vkrt.weights.sam2_names import to_official

__all__ = ["oracle_config", "oracle_model", "read_oracle", "twin", "write_oracle"]

# What Sam2Model, which only sees single pictures, has no weights for.
TRACKING = ("mask_downsample", "maskmem", "memory_", "no_mem_pos_enc", "no_obj", "obj_ptr")


def vision_config(config: Sam2Config) -> Sam2VisionConfig:
    """Return transformers' config of the trunk and the neck."""
    trunk, size = config.trunk, config.image_size
    backbone = Sam2HieraDetConfig(
        hidden_size=trunk.embed_dim,
        num_attention_heads=trunk.num_heads,
        image_size=[size, size],
        window_positional_embedding_background_size=[trunk.pos_embed_bkg] * 2,
        blocks_per_stage=list(trunk.stages),
        embed_dim_per_stage=list(trunk.dims),
        num_attention_heads_per_stage=[trunk.num_heads * 2**i for i in range(4)],
        window_size_per_stage=list(trunk.window_spec),
        global_attention_blocks=list(trunk.global_blocks),
    )
    return Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=list(reversed(trunk.dims)),
        backbone_feature_sizes=[[size // s, size // s] for s in (4, 8, 16)],
        fpn_hidden_size=config.hidden_dim,
    )


def oracle_config(config: Sam2Config) -> OracleConfig:
    """Return transformers' config of the same model."""
    decoder = {
        "hidden_size": config.hidden_dim,
        "mlp_dim": config.decoder_mlp_dim,
        "num_attention_heads": config.decoder_heads,
        "iou_head_hidden_dim": config.hidden_dim,
    }
    return OracleConfig(
        vision_config=vision_config(config),
        prompt_encoder_config={"hidden_size": config.hidden_dim, "image_size": config.image_size},
        mask_decoder_config=decoder,
    )


@torch.no_grad()
def oracle_model(config: Sam2Config, seed: int = 0) -> Sam2Model:
    """Return transformers' model with random weights, none of them at a neutral value."""
    torch.manual_seed(seed)
    model = Sam2Model(oracle_config(config)).eval()
    for name, parameter in model.named_parameters():
        # Zeros and ones (position embeddings, biases, norms) would hide a wrong use of them.
        if parameter.ndim == 1 or "embed" in name:
            parameter.add_(torch.randn_like(parameter) * 0.1)
        elif parameter.ndim == 2:
            parameter.mul_(2.5)
    # A trained checkpoint has one matrix twice; a fresh model draws it twice.
    shared = model.shared_image_embedding.positional_embedding
    model.prompt_encoder.shared_embedding.positional_embedding.copy_(shared)
    return model


def twin(oracle: Sam2Model, config: Sam2Config) -> Sam2:
    """Return our model with the oracle's weights.

    Raises:
        ValueError: the weights of one are not those of the other.
    """
    model = Sam2(config).eval()
    result = model.load_state_dict(to_official(dict(oracle.state_dict())), strict=False)
    missing = [key for key in result.missing_keys if not key.startswith(TRACKING)]
    if missing or result.unexpected_keys:
        raise ValueError(f"missing {missing}, unexpected {result.unexpected_keys}")
    return model


def write_oracle(oracle: Sam2Model, folder: Path) -> None:
    """Write transformers' model as a folder of its own kind."""
    disable_progress_bar()
    oracle.save_pretrained(folder)


def read_oracle(folder: Path) -> Sam2Model:
    """Return transformers' model from such a folder, as a user loads one."""
    disable_progress_bar()
    return Sam2Model.from_pretrained(folder).eval()

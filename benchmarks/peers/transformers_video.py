"""transformers' Sam2VideoModel with the shape of one of our configs and random weights."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Sam2VideoConfig, Sam2VideoModel

from benchmarks.peers.transformers_sam2 import vision_config
from vkrt.models.sam2.config import Sam2Config
from vkrt.models.sam2.model import Sam2
from vkrt.weights.sam2_names import to_official

__all__ = ["video_config", "video_model", "video_twin"]

# So wide transformers' memories always are.
MEMORY_WIDTH = 64


def video_config(config: Sam2Config) -> Sam2VideoConfig:
    """Return transformers' config of the same model.

    Raises:
        ValueError: its memories have a width that transformers' can't have.
    """
    memory, dim = config.memory, config.hidden_dim
    if memory.mem_dim != MEMORY_WIDTH:
        raise ValueError(f"transformers' memories are {MEMORY_WIDTH} wide, not {memory.mem_dim}")
    newer = config.version == "2.1"
    return Sam2VideoConfig(
        vision_config=vision_config(config),
        prompt_encoder_config={"hidden_size": dim, "image_size": config.image_size},
        mask_decoder_config={
            "hidden_size": dim,
            "mlp_dim": config.decoder_mlp_dim,
            "num_attention_heads": config.decoder_heads,
            "iou_head_hidden_dim": dim,
            "dynamic_multimask_via_stability": True,
        },
        image_size=config.image_size,
        num_maskmem=memory.num_maskmem,
        max_object_pointers_in_encoder=memory.max_obj_ptrs,
        enable_temporal_pos_encoding_for_object_pointers=newer,
        enable_occlusion_spatial_embedding=newer,
        memory_attention_hidden_size=dim,
        memory_attention_num_layers=memory.num_layers,
        memory_attention_feed_forward_hidden_size=memory.ffn_dim,
        memory_attention_rope_feat_sizes=[config.embed_size] * 2,
        memory_encoder_hidden_size=dim,
        memory_encoder_output_channels=memory.mem_dim,
        mask_downsampler_embed_dim=dim,
        memory_fuser_embed_dim=dim,
        memory_fuser_intermediate_dim=4 * dim,
    )


@torch.no_grad()
def video_model(config: Sam2Config, seed: int = 0) -> Sam2VideoModel:
    """Return transformers' model with random weights, none of them at a neutral value."""
    torch.manual_seed(seed)
    model = Sam2VideoModel(video_config(config)).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 or "embed" in name or not parameter.any():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        elif parameter.ndim == 2:
            parameter.mul_(2.5)
    # Seen more often than not: masks of objects that are not there are all alike.
    last: Tensor = model.mask_decoder.pred_obj_score_head.proj_out.bias
    last.add_(1.0)
    shared = model.shared_image_embedding.positional_embedding
    model.prompt_encoder.shared_embedding.positional_embedding.copy_(shared)
    return model


def video_twin(oracle: Sam2VideoModel, config: Sam2Config) -> Sam2:
    """Return our model with the oracle's weights."""
    model = Sam2(config).eval().requires_grad_(False)
    model.load_state_dict(to_official(dict(oracle.state_dict())))
    return model

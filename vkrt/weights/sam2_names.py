"""Turn the tensor names of transformers' Sam2Model and Sam2VideoModel into the official ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from vkrt.errors import CheckpointError
from vkrt.weights.safety_limits import shown

__all__ = ["is_transformers", "official_name", "to_official"]

Replacement = str | Callable[[re.Match[str]], str]

POINT_EMBED = "prompt_encoder.point_embed.weight"
POINT_KINDS = 4
# What only transformers calls so; parts of a model may have the decoder alone.
THEIRS = ("vision_encoder.", "mask_decoder.upscale_conv1.", "shared_image_embedding.")

# Heads of three linear layers; every other MLP has two.
HEADS = r"(output_hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head|obj_ptr_proj)"


def downsampler_layer(match: re.Match[str]) -> str:
    """Return the official prefix of a layer of the mask downsampler."""
    # Officially one sequence of (convolution, norm, activation) steps.
    place = 3 * int(match[1]) + (0 if match[2] == "conv" else 1)
    return f"memory_encoder.mask_downsampler.encoder.{place}."


# Applied in order, each to what the earlier ones made.
RULES: list[tuple[str, Replacement]] = [
    (r"^vision_encoder\.neck\.convs\.(\d+)\.", r"image_encoder.neck.convs.\1.conv."),
    (r"^vision_encoder\.backbone\.", "image_encoder.trunk."),
    (r"\.patch_embed\.projection\.", ".patch_embed.proj."),
    (
        r"^(shared_image_embedding|prompt_encoder\.shared_embedding)\.positional_embedding$",
        "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ),
    (r"^prompt_encoder\.", "sam_prompt_encoder."),
    (r"\.mask_embed\.conv1\.", ".mask_downscaling.0."),
    (r"\.mask_embed\.layer_norm1\.", ".mask_downscaling.1."),
    (r"\.mask_embed\.conv2\.", ".mask_downscaling.3."),
    (r"\.mask_embed\.layer_norm2\.", ".mask_downscaling.4."),
    (r"\.mask_embed\.conv3\.", ".mask_downscaling.6."),
    (r"^mask_decoder\.", "sam_mask_decoder."),
    (r"\.upscale_conv1\.", ".output_upscaling.0."),
    (r"\.upscale_layer_norm\.", ".output_upscaling.1."),
    (r"\.upscale_conv2\.", ".output_upscaling.3."),
    (r"^memory_encoder\.mask_downsampler\.layers\.(\d)\.(conv|layer_norm)\.", downsampler_layer),
    (
        r"^memory_encoder\.mask_downsampler\.final_conv\.",
        "memory_encoder.mask_downsampler.encoder.12.",
    ),
    (r"^memory_encoder\.feature_projection\.", "memory_encoder.pix_feat_proj."),
    (r"^memory_encoder\.projection\.", "memory_encoder.out_proj."),
    (r"^memory_encoder\.memory_fuser\.", "memory_encoder.fuser."),
    (r"\.depthwise_conv\.", ".dwconv."),
    (r"\.pointwise_conv(\d)\.", r".pwconv\1."),
    (r"^(memory_encoder\.fuser\.layers\.\d+)\.scale$", r"\1.gamma"),
    (r"^no_memory_embedding$", "no_mem_embed"),
    (r"^no_memory_positional_encoding$", "no_mem_pos_enc"),
    (r"^memory_temporal_positional_encoding$", "maskmem_tpos_enc"),
    (r"^no_object_pointer$", "no_obj_ptr"),
    (r"^occlusion_spatial_embedding_parameter$", "no_obj_embed_spatial"),
    (r"^object_pointer_proj\.", "obj_ptr_proj."),
    (r"^temporal_positional_encoding_projection_layer\.", "obj_ptr_tpos_proj."),
    (rf"{HEADS}\.layers\.0\.", r"\1.layers.1."),
    (rf"{HEADS}\.proj_in\.", r"\1.layers.0."),
    (rf"{HEADS}\.proj_out\.", r"\1.layers.2."),
    (r"\.mlp\.proj_in\.", ".mlp.layers.0."),
    (r"\.mlp\.proj_out\.", ".mlp.layers.1."),
    (r"\.o_proj\.", ".out_proj."),
    (r"\.layer_norm_final_attn\.", ".norm_final_attn."),
    (r"\.layer_norm(\d?)\.", r".norm\1."),
]


def is_transformers(names: Iterable[str]) -> bool:
    """Tell transformers' names from the official ones."""
    return any(name.startswith(THEIRS) for name in names)


def official_name(name: str) -> str:
    """Return the official name of a tensor that transformers names; an unknown one stays."""
    for pattern, replacement in RULES:
        name = re.sub(pattern, replacement, name)
    return name


def to_official(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under their official names; official ones come back as they are.

    The point embeddings (4, C) of transformers are four embeddings (1, C) officially.

    Raises:
        CheckpointError: two tensors that differ have one official name.
    """
    if not is_transformers(tensors):
        return dict(tensors)
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for official, part in split(name, tensor):
            if official in named and not same(named[official], part):
                raise CheckpointError(
                    f"{shown(name)} differs from another copy of {shown(official)}, and SAM 2 has "
                    "only one: make the copies equal (shared_image_embedding and "
                    "prompt_encoder.shared_embedding) and save again"
                )
            named[official] = part
    return named


def split(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """Return the official names and values of one tensor of transformers."""
    if name == POINT_EMBED and tensor.ndim == 2 and len(tensor) == POINT_KINDS:
        rows = tensor.split(1)
        return [(f"sam_prompt_encoder.point_embeddings.{i}.weight", r) for i, r in enumerate(rows)]
    return [(official_name(name), tensor)]


def same(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal in shape and in every value."""
    return one.shape == other.shape and torch.equal(one, other)

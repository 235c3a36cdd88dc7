"""The tensor names of Stable Diffusion 3.5: which ones of diffusers make up each official one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Piece", "diffusers_pieces", "is_diffusers", "to_diffusers"]

# Where diffusers names another order of halves: (scale, shift) for the official (shift, scale).
SWAPPED = (1, 0)


class Piece(NamedTuple):
    """Name rows of a tensor: all of them, or its first (0) or second (1) half."""

    name: str
    half: int | None = None


# Rules are applied in order, each to what the earlier ones made. Braces become q, k and v.
TRANSFORMER = [
    (r"^t_embedder\.mlp\.0\.", "time_text_embed.timestep_embedder.linear_1."),
    (r"^t_embedder\.mlp\.2\.", "time_text_embed.timestep_embedder.linear_2."),
    (r"^y_embedder\.mlp\.0\.", "time_text_embed.text_embedder.linear_1."),
    (r"^y_embedder\.mlp\.2\.", "time_text_embed.text_embedder.linear_2."),
    (r"^pos_embed$", "pos_embed.pos_embed"),
    (r"^x_embedder\.", "pos_embed."),
    (r"^final_layer\.linear\.", "proj_out."),
    (r"^final_layer\.adaLN_modulation\.1\.", "norm_out.linear."),
    (r"^joint_blocks\.", "transformer_blocks."),
    (r"\.x_block\.(attn2?)\.qkv\.", r".\1.to_{}."),
    (r"\.x_block\.(attn2?)\.proj\.", r".\1.to_out.0."),
    (r"\.x_block\.(attn2?)\.ln_([qk])\.", r".\1.norm_\2."),
    (r"\.x_block\.adaLN_modulation\.1\.", ".norm1.linear."),
    (r"\.x_block\.mlp\.", ".ff."),
    (r"\.context_block\.attn\.qkv\.", ".attn.add_{}_proj."),
    (r"\.context_block\.attn\.proj\.", ".attn.to_add_out."),
    (r"\.context_block\.attn\.ln_([qk])\.", r".attn.norm_added_\1."),
    (r"\.context_block\.adaLN_modulation\.1\.", ".norm1_context.linear."),
    (r"\.context_block\.mlp\.", ".ff_context."),
    (r"\.fc1\.", ".net.0.proj."),
    (r"\.fc2\.", ".net.2."),
]
CONTROLNET = [
    (r"\.attn\.qkv\.", ".attn.to_{}."),
    (r"\.attn\.proj\.", ".attn.to_out.0."),
    (r"\.adaLN_modulation\.1\.", ".norm1.linear."),
    (r"\.mlp\.fc1\.", ".ff.net.0.proj."),
    (r"\.mlp\.fc2\.", ".ff.net.2."),
]
VAE = [
    (r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets."),
    (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.up\.(\d+)\.block\.", r".up_blocks.\1.resnets."),
    (r"\.up\.(\d+)\.upsample\.", r".up_blocks.\1.upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
]
RULES = {"transformer": TRANSFORMER, "controlnet": CONTROLNET, "vae": VAE}

# What only diffusers names so.
MARKS = {
    "transformer": "time_text_embed.",
    "controlnet": "transformer_blocks.0.attn.to_q.",
    "vae": "decoder.mid_block.",
}


def is_diffusers(component: str, names: Iterable[str]) -> bool:
    """Tell diffusers' names of a component from the official ones; encoders have but one kind."""
    mark = MARKS.get(component)
    return mark is not None and any(name.startswith(mark) for name in names)


def diffusers_pieces(component: str, name: str, count: int) -> tuple[Piece, ...]:
    """Return the rows of diffusers' tensors that make up an official one, in order.

    Args:
        component: "transformer", "vae", "controlnet", or an encoder ("clip_l", "clip_g", "t5").
        name: the official name, without the prefix of its component.
        count: blocks of the transformer or levels of the VAE; nothing else needs it.
    """
    theirs = name
    for pattern, replacement in RULES.get(component, ()):
        theirs = re.sub(pattern, replacement, theirs)
    if component == "vae":
        theirs = re.sub(r"\.up_blocks\.(\d+)\.", lambda m: turned_round(m, count), theirs)
    if "{}" in theirs:
        return tuple(Piece(theirs.replace("{}", which)) for which in "qkv")
    if component == "transformer" and is_swapped(name, count):
        return tuple(Piece(theirs, half) for half in SWAPPED)
    return (Piece(theirs),)


def turned_round(match: re.Match[str], levels: int) -> str:
    """Return a decoder's level as diffusers counts: from the coarsest one."""
    return f".up_blocks.{levels - 1 - int(match[1])}."


def is_swapped(name: str, depth: int) -> bool:
    """Tell a modulation of which diffusers exchanged shift and scale: those of norm_out's class."""
    last = f"joint_blocks.{depth - 1}.context_block."
    return name.startswith((f"{last}adaLN_modulation.", "final_layer.adaLN_modulation."))


def to_diffusers(component: str, tensors: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Return official tensors of a component under diffusers' names, in diffusers' layout.

    Args:
        component, count: as in diffusers_pieces.
        tensors: by their official names; views of them come back where that is enough.
    """
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        pieces = diffusers_pieces(component, name, count)
        parts = tensor.chunk(len(pieces))
        if len(pieces) == len(SWAPPED):
            # Two exchanges undo one another.
            named[pieces[0].name] = torch.cat(parts[::-1])
            continue
        for piece, part in zip(pieces, parts, strict=True):
            named[piece.name] = as_linear(component, piece.name, part)
    return named


def as_linear(component: str, name: str, tensor: Tensor) -> Tensor:
    """Return the weight of a linear layer (n, m) for that of a 1x1 convolution (n, m, 1, 1)."""
    is_projection = component == "vae" and ".attentions." in name and tensor.ndim == 4
    return tensor.flatten(1) if is_projection else tensor

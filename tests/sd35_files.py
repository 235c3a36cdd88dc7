"""Files of Stable Diffusion 3.5 in its published formats: tiny, or as headers alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from vkrt.models.sd35.config import (
    ClipConfig,
    ControlNetConfig,
    MmditConfig,
    Sd35Config,
    T5Config,
    VaeConfig,
)

__all__ = [
    "CONTROL",
    "SINGLE_FILE",
    "TINY",
    "component_shapes",
    "controlnet_shapes",
    "random_state",
    "single_file",
    "transformer_shapes",
    "write_header",
    "write_tiny",
]

Shapes = dict[str, tuple[int, ...]]
State = dict[str, Tensor]

TINY = Sd35Config(
    mmdit=MmditConfig(
        depth=3,
        heads=2,
        head_dim=16,
        dual_blocks=(0, 1),
        pos_embed_max_size=8,
        context_dim=192,
        pooled_dim=160,
    ),
    clip_l=ClipConfig(64, 2, 1, 96, 64, "quick_gelu", pad=99, vocabulary=100, length=77),
    clip_g=ClipConfig(128, 3, 2, 96, 96, "gelu", pad=0, vocabulary=100, length=77),
    t5=T5Config(dim=192, layers=2, heads=4, head_dim=16, mlp_dim=80, vocabulary=120),
    vae=VaeConfig(channels=32, multipliers=(1, 2, 2), blocks=1),
)
CONTROL = ControlNetConfig(depth=2, heads=2, head_dim=16, pooled_dim=160)

# What the names of each component start with in a file that holds all of them.
SINGLE_FILE = {
    "transformer": "model.diffusion_model.",
    "clip_l": "text_encoders.clip_l.transformer.",
    "clip_g": "text_encoders.clip_g.transformer.",
    "t5": "text_encoders.t5xxl.transformer.",
    "vae": "first_stage_model.",
}
TIME_DIM = 256


def linear(name: str, wide: int, deep: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (wide, deep)} | ({f"{name}.bias": (wide,)} if bias else {})


def conv(name: str, wide: int, deep: int, side: int) -> Shapes:
    return {f"{name}.weight": (wide, deep, side, side), f"{name}.bias": (wide,)}


def norm(name: str, dim: int) -> Shapes:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def embedder(name: str, dim: int, deep: int) -> Shapes:
    return linear(f"{name}.0", dim, deep) | linear(f"{name}.2", dim, dim)


def attention(name: str, dim: int, head_dim: int, proj: bool = True) -> Shapes:
    norms: Shapes = {f"{name}.ln_q.weight": (head_dim,), f"{name}.ln_k.weight": (head_dim,)}
    shapes = linear(f"{name}.qkv", 3 * dim, dim) | norms
    return shapes | linear(f"{name}.proj", dim, dim) if proj else shapes


def mlp(name: str, dim: int, ratio: int) -> Shapes:
    return linear(f"{name}.fc1", ratio * dim, dim) | linear(f"{name}.fc2", dim, ratio * dim)


def transformer_shapes(config: MmditConfig) -> Shapes:
    """Return the official names and shapes of MMDiT and MMDiT-X."""
    dim = config.dim
    shapes: Shapes = {"pos_embed": (1, config.pos_embed_max_size**2, dim)}
    shapes |= conv("x_embedder.proj", dim, config.channels, config.patch)
    shapes |= embedder("t_embedder.mlp", dim, TIME_DIM)
    shapes |= embedder("y_embedder.mlp", dim, config.pooled_dim)
    shapes |= linear("context_embedder", dim, config.context_dim)
    for index in range(config.depth):
        image, context = (f"joint_blocks.{index}.{kind}_block" for kind in ("x", "context"))
        is_dual, is_last = index in config.dual_blocks, index == config.depth - 1
        shapes |= attention(f"{image}.attn", dim, config.head_dim)
        shapes |= attention(f"{image}.attn2", dim, config.head_dim) if is_dual else {}
        shapes |= mlp(f"{image}.mlp", dim, config.mlp_ratio)
        shapes |= linear(f"{image}.adaLN_modulation.1", (9 if is_dual else 6) * dim, dim)
        shapes |= attention(f"{context}.attn", dim, config.head_dim, proj=not is_last)
        shapes |= {} if is_last else mlp(f"{context}.mlp", dim, config.mlp_ratio)
        shapes |= linear(f"{context}.adaLN_modulation.1", (2 if is_last else 6) * dim, dim)
    shapes |= linear("final_layer.linear", config.patch_dim, dim)
    return shapes | linear("final_layer.adaLN_modulation.1", 2 * dim, dim)


def controlnet_shapes(config: ControlNetConfig) -> Shapes:
    """Return the official names and shapes of a ControlNet of the 8B family."""
    dim = config.dim
    shapes = conv("pos_embed_input.proj", dim, config.channels, config.patch)
    for name, deep in (("timestep", TIME_DIM), ("text", config.pooled_dim)):
        shapes |= linear(f"time_text_embed.{name}_embedder.linear_1", dim, deep)
        shapes |= linear(f"time_text_embed.{name}_embedder.linear_2", dim, dim)
    for index in range(config.depth):
        block = f"transformer_blocks.{index}"
        shapes |= linear(f"{block}.attn.qkv", 3 * dim, dim)
        shapes |= linear(f"{block}.attn.proj", dim, dim)
        shapes |= mlp(f"{block}.mlp", dim, config.mlp_ratio)
        shapes |= linear(f"{block}.adaLN_modulation.1", 6 * dim, dim)
        shapes |= linear(f"controlnet_blocks.{index}", dim, dim)
    return shapes


def clip_shapes(config: ClipConfig, projects: bool) -> Shapes:
    """Return the names and shapes of CLIP; the file of CLIP-L has no projection."""
    shapes: Shapes = {
        "text_model.embeddings.token_embedding.weight": (config.vocabulary, config.dim),
        "text_model.embeddings.position_embedding.weight": (config.length, config.dim),
    }
    for index in range(config.layers):
        layer = f"text_model.encoder.layers.{index}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear(f"{layer}.self_attn.{name}", config.dim, config.dim)
        shapes |= norm(f"{layer}.layer_norm1", config.dim) | norm(
            f"{layer}.layer_norm2", config.dim
        )
        shapes |= linear(f"{layer}.mlp.fc1", config.mlp_dim, config.dim)
        shapes |= linear(f"{layer}.mlp.fc2", config.dim, config.mlp_dim)
    shapes |= norm("text_model.final_layer_norm", config.dim)
    projection = linear("text_projection", config.projection_dim, config.dim, bias=False)
    return shapes | projection if projects else shapes


def t5_shapes(config: T5Config) -> Shapes:
    """Return the names and shapes of the encoder of T5 1.1."""
    inner = config.heads * config.head_dim
    shapes: Shapes = {"shared.weight": (config.vocabulary, config.dim)}
    for index in range(config.layers):
        first, second = (f"encoder.block.{index}.layer.{part}" for part in (0, 1))
        for name in ("q", "k", "v"):
            shapes |= linear(f"{first}.SelfAttention.{name}", inner, config.dim, bias=False)
        shapes |= linear(f"{first}.SelfAttention.o", config.dim, inner, bias=False)
        for name in ("wi_0", "wi_1"):
            shapes |= linear(f"{second}.DenseReluDense.{name}", config.mlp_dim, config.dim, False)
        shapes |= linear(f"{second}.DenseReluDense.wo", config.dim, config.mlp_dim, bias=False)
        shapes |= {f"{part}.layer_norm.weight": (config.dim,) for part in (first, second)}
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return shapes | {
        bias: (config.buckets, config.heads),
        "encoder.final_layer_norm.weight": (config.dim,),
    }


def resnet(name: str, before: int, after: int) -> Shapes:
    shapes = norm(f"{name}.norm1", before) | conv(f"{name}.conv1", after, before, 3)
    shapes |= norm(f"{name}.norm2", after) | conv(f"{name}.conv2", after, after, 3)
    return shapes | conv(f"{name}.nin_shortcut", after, before, 1) if before != after else shapes


def vae_half(name: str, config: VaeConfig, levels: list[tuple[int, int, int]]) -> Shapes:
    """Return one half; `levels` has number, channels before and after, in the order of running."""
    widest = config.channels * config.multipliers[-1]
    is_encoder = name == "encoder"
    shapes: Shapes = {}
    for place, (level, before, after) in enumerate(levels):
        at = f"{name}.{'down' if is_encoder else 'up'}.{level}"
        for block in range(config.blocks + (not is_encoder)):
            shapes |= resnet(f"{at}.block.{block}", after if block else before, after)
        if place < len(levels) - 1:
            shapes |= conv(
                f"{at}.{'downsample' if is_encoder else 'upsample'}.conv", after, after, 3
            )
    for block in (1, 2):
        shapes |= resnet(f"{name}.mid.block_{block}", widest, widest)
    shapes |= norm(f"{name}.mid.attn_1.norm", widest)
    for part in ("q", "k", "v", "proj_out"):
        shapes |= conv(f"{name}.mid.attn_1.{part}", widest, widest, 1)
    return shapes


def vae_shapes(config: VaeConfig) -> Shapes:
    """Return the official names and shapes of the autoencoder."""
    widths = [config.channels * factor for factor in config.multipliers]
    count = len(widths)
    down = [(i, widths[max(i - 1, 0)], widths[i]) for i in range(count)]
    up = [(i, widths[min(i + 1, count - 1)], widths[i]) for i in reversed(range(count))]
    shapes = vae_half("encoder", config, down) | vae_half("decoder", config, up)
    shapes |= conv("encoder.conv_in", widths[0], 3, 3) | norm("encoder.norm_out", widths[-1])
    shapes |= conv("encoder.conv_out", 2 * config.latent_channels, widths[-1], 3)
    shapes |= conv("decoder.conv_in", widths[-1], config.latent_channels, 3)
    return shapes | norm("decoder.norm_out", widths[0]) | conv("decoder.conv_out", 3, widths[0], 3)


def component_shapes(config: Sd35Config) -> dict[str, Shapes]:
    """Return the official names and shapes of every component, without prefixes."""
    return {
        "transformer": transformer_shapes(config.mmdit),
        "clip_l": clip_shapes(config.clip_l, projects=False),
        "clip_g": clip_shapes(config.clip_g, projects=True),
        "t5": t5_shapes(config.t5),
        "vae": vae_shapes(config.vae),
    }


def random_state(shapes: Shapes, dtype: torch.dtype = torch.float32, seed: int = 0) -> State:
    """Return small values in which every tensor differs from every other."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator).mul_(0.05).to(dtype)
        for name, shape in shapes.items()
    }


def single_file(states: Mapping[str, State]) -> State:
    """Return components as a file that holds all of them names them."""
    return {
        f"{SINGLE_FILE[kind]}{name}": tensor
        for kind, state in states.items()
        for name, tensor in state.items()
    }


def write_header(path: Path, shapes: Shapes, kind: str = "F16", size: int = 2) -> None:
    """Write a whole safetensors file of zeros that takes no disk: a header and a hole."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * size
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def write_tiny(path: Path, dtype: torch.dtype = torch.float32) -> dict[str, State]:
    """Write the tiny model as one file and return its components."""
    states = {kind: random_state(s, dtype) for kind, s in component_shapes(TINY).items()}
    save_file(single_file(states), path)
    return states

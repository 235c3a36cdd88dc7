"""Infer the configs of Stable Diffusion 3.5 from the shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

from vkrt.errors import CheckpointError
from vkrt.models.sd35.config import (
    CLIP_G,
    CLIP_L,
    ClipConfig,
    ControlNetConfig,
    MmditConfig,
    T5Config,
    VaeConfig,
)
from vkrt.weights.safety_limits import shown
from vkrt.weights.sd35_names import diffusers_pieces, is_diffusers

__all__ = [
    "ShapeTable",
    "clip_config",
    "controlnet_config",
    "mmdit_config",
    "t5_config",
    "vae_config",
]

# Bounds on what names and shapes may claim: a module of that size is built before all is compared.
MAX_BLOCKS = 512
MAX_SIZE = 2**20

CLIPS = {"clip_l": CLIP_L, "clip_g": CLIP_G}
# Of the published text encoders; their shapes do not tell.
CLIP_HEAD_DIM = 64
ACTIVATIONS = ("quick_gelu", "gelu")
BLOCK = r"^(?:joint|transformer)_blocks\."


class ShapeTable:
    """Look shapes up by official names, whatever names the file has.

    Args:
        component: as in diffusers_pieces.
        shapes: by the file's names, without the prefix of their component.
        settings: the config.json beside the file; {} where there is none. It is asked only for
            what no shape tells.
    """

    def __init__(
        self,
        component: str,
        shapes: Mapping[str, tuple[int, ...]],
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.component = component
        self.shapes = shapes
        self.settings = settings or {}
        self.renamed = is_diffusers(component, shapes)

    def sizes(self, name: str, ndim: int) -> tuple[int, ...]:
        """Return the sizes of a tensor of `ndim` dimensions.

        Raises:
            CheckpointError: it is not there, or no such model can be.
        """
        if self.renamed:
            name = diffusers_pieces(self.component, name, 0)[0].name
        shape = self.shapes.get(name)
        if shape is None:
            raise CheckpointError(f"{self.component} lacks {name}: get an unchanged checkpoint")
        if len(shape) != ndim or not all(0 < size <= MAX_SIZE for size in shape):
            text = "x".join(map(str, shape)) or "a single number"
            raise CheckpointError(
                f"{name} of {self.component} is {text}, which no model has: "
                "get an unchanged checkpoint"
            )
        return shape

    def indices(self, pattern: str) -> list[int]:
        """Return the numbers that the group of a pattern takes in the file's names, in order."""
        found = {int(match[1]) for name in self.shapes if (match := re.search(pattern, name))}
        if len(found) > MAX_BLOCKS:
            raise CheckpointError(
                f"{self.component} has {len(found):,} blocks, and at most {MAX_BLOCKS} are read: "
                "get an unchanged checkpoint"
            )
        return sorted(found)

    def setting(self, name: str, default: Any) -> Any:
        """Return a value of config.json if it is there and of the same kind as the default.

        Raises:
            CheckpointError: it is out of any range.
        """
        value = self.settings.get(name)
        if isinstance(default, float) and type(value) is int:
            value = float(value)
        if type(value) is not type(default):
            return default
        if isinstance(value, int | float) and not 0 < value <= MAX_SIZE:
            raise CheckpointError(
                f"config.json of {self.component} says {name} = {value}: get the folder again"
            )
        return value


def mmdit_config(table: ShapeTable) -> MmditConfig:
    """Return the config of a transformer."""
    dim, channels, patch, _ = table.sizes("x_embedder.proj.weight", 4)
    positions = isqrt(table.sizes("pos_embed", 3)[1])
    norm = "transformer_blocks.0.attn.norm_q.weight"
    if norm not in table.shapes and "joint_blocks.0.x_block.attn.ln_q.weight" not in table.shapes:
        raise CheckpointError(
            "this is Stable Diffusion 3, not 3.5: its blocks have no QK norm; "
            "give a checkpoint of Stable Diffusion 3.5"
        )
    head_dim = table.sizes("joint_blocks.0.x_block.attn.ln_q.weight", 1)[0]
    return MmditConfig(
        depth=len(table.indices(rf"{BLOCK}(\d{{1,4}})\.")),
        heads=divided(dim, head_dim, "x_embedder.proj.weight"),
        head_dim=head_dim,
        dual_blocks=tuple(table.indices(rf"{BLOCK}(\d{{1,4}})\.(?:x_block\.)?attn2\.")),
        pos_embed_max_size=positions,
        channels=channels,
        patch=patch,
        context_dim=table.sizes("context_embedder.weight", 2)[1],
        pooled_dim=table.sizes("y_embedder.mlp.0.weight", 2)[1],
        mlp_ratio=divided(table.sizes("joint_blocks.0.x_block.mlp.fc1.weight", 2)[0], dim, "mlp"),
    )


def divided(size: int, by: int, name: str) -> int:
    """Return how often one size goes into another.

    Raises:
        CheckpointError: it does not.
    """
    if size % by:
        raise CheckpointError(
            f"{name} is {size} wide, no multiple of {by}: get an unchanged checkpoint"
        )
    return size // by


def controlnet_config(table: ShapeTable, default_head_dim: int = 64) -> ControlNetConfig:
    """Return the config of a ControlNet.

    Args:
        table: its shapes.
        default_head_dim: of the model that it leads; its shapes do not tell its own.

    Raises:
        CheckpointError: it is none of the image-only family.
    """
    if any(name.startswith(("context_embedder.", "joint_blocks.")) for name in table.shapes):
        raise CheckpointError(
            "this ControlNet reads the prompt, and only those of Stability AI's 8B family run "
            "(blur, canny, depth): give one of them"
        )
    dim, channels, patch, _ = table.sizes("pos_embed_input.proj.weight", 4)
    head_dim = table.setting("attention_head_dim", default_head_dim)
    return ControlNetConfig(
        depth=len(table.indices(r"^transformer_blocks\.(\d{1,4})\.")),
        heads=divided(dim, head_dim, "pos_embed_input.proj.weight"),
        head_dim=head_dim,
        channels=channels,
        patch=patch,
        pooled_dim=table.sizes("time_text_embed.text_embedder.linear_1.weight", 2)[1],
        mlp_ratio=divided(table.sizes("transformer_blocks.0.mlp.fc1.weight", 2)[0], dim, "mlp"),
    )


def clip_config(table: ShapeTable) -> ClipConfig:
    """Return the config of a CLIP text encoder; its component says which one it is."""
    published = CLIPS[table.component]
    layers = "text_model.encoder.layers."
    vocabulary, dim = table.sizes("text_model.embeddings.token_embedding.weight", 2)
    projects = "text_projection.weight" in table.shapes
    heads = table.setting("num_attention_heads", max(1, dim // CLIP_HEAD_DIM))
    divided(dim, heads, f"{table.component}'s token_embedding")
    activation = table.setting("hidden_act", published.activation)
    if activation not in ACTIVATIONS:
        raise CheckpointError(
            f"{table.component} has the activation {shown(activation)}, and only "
            f"{' and '.join(ACTIVATIONS)} run: give the encoder of Stable Diffusion 3.5"
        )
    return ClipConfig(
        dim=dim,
        layers=len(table.indices(rf"^{re.escape(layers)}(\d{{1,4}})\.")),
        heads=heads,
        mlp_dim=table.sizes(f"{layers}0.mlp.fc1.weight", 2)[0],
        projection_dim=table.sizes("text_projection.weight", 2)[0] if projects else dim,
        activation=activation,
        # The last token ends a prompt in every CLIP.
        pad=min(published.pad, vocabulary - 1),
        vocabulary=vocabulary,
        length=table.sizes("text_model.embeddings.position_embedding.weight", 2)[0],
    )


def t5_config(table: ShapeTable) -> T5Config:
    """Return the config of a T5 encoder."""
    first = "encoder.block.0.layer"
    vocabulary, dim = table.sizes("shared.weight", 2)
    bias = f"{first}.0.SelfAttention.relative_attention_bias.weight"
    buckets, heads = table.sizes(bias, 2)
    inner = table.sizes(f"{first}.0.SelfAttention.q.weight", 2)[0]
    return T5Config(
        dim=dim,
        layers=len(table.indices(r"^encoder\.block\.(\d{1,4})\.")),
        heads=heads,
        head_dim=divided(inner, heads, f"{first}.0.SelfAttention.q.weight"),
        mlp_dim=table.sizes(f"{first}.1.DenseReluDense.wi_0.weight", 2)[0],
        vocabulary=vocabulary,
        buckets=buckets,
        max_distance=table.setting("relative_attention_max_distance", T5Config.max_distance),
    )


def vae_config(table: ShapeTable) -> VaeConfig:
    """Return the config of the autoencoder."""
    down = r"^encoder\.down(?:_blocks)?\."
    channels = table.sizes("encoder.conv_in.weight", 4)[0]
    levels = len(table.indices(rf"{down}(\d{{1,4}})\."))
    widths = [
        table.sizes(f"encoder.down.{level}.block.0.conv1.weight", 4)[0] for level in range(levels)
    ]
    # As many as there are, up to the published number, where the file does not say.
    groups = min(VaeConfig.groups, channels & -channels)
    return VaeConfig(
        channels=channels,
        multipliers=tuple(divided(width, channels, "encoder") for width in widths),
        blocks=len(table.indices(rf"{down}0\.(?:block|resnets)\.(\d{{1,4}})\.")),
        latent_channels=table.sizes("decoder.conv_in.weight", 4)[1],
        groups=table.setting("norm_num_groups", groups),
        scaling=table.setting("scaling_factor", VaeConfig.scaling),
        shift=table.setting("shift_factor", VaeConfig.shift),
    )

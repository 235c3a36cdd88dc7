"""The shape of a Stable Diffusion 3.5 model, as plain numbers: imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = [
    "ClipConfig",
    "ControlNetConfig",
    "MmditConfig",
    "Sd35Config",
    "T5Config",
    "VaeConfig",
]


@dataclass(frozen=True)
class MmditConfig:
    """Describe the multimodal diffusion transformer (https://arxiv.org/abs/2403.03206).

    Attributes:
        depth: joint blocks; the last one leaves the context as it is.
        heads: attention heads of each.
        head_dim: channels of a head.
        dual_blocks: indices of the blocks in which the image attends to itself once more
            (MMDiT-X).
        pos_embed_max_size: side of the stored position embedding, in patches.
        channels: of a latent.
        patch: side of a patch, in latent pixels.
        context_dim: channels of the text embeddings.
        pooled_dim: channels of the pooled text embedding.
        mlp_ratio: width of the feed-forward parts, as a multiple of `dim`.
    """

    depth: int
    heads: int
    head_dim: int = 64
    dual_blocks: tuple[int, ...] = ()
    pos_embed_max_size: int = 192
    channels: int = 16
    patch: int = 2
    context_dim: int = 4096
    pooled_dim: int = 2048
    mlp_ratio: int = 4

    @property
    def dim(self) -> int:
        """Return the channels of a token."""
        return self.heads * self.head_dim

    @property
    def patch_dim(self) -> int:
        """Return the numbers in a patch."""
        return self.channels * self.patch**2


@dataclass(frozen=True)
class ClipConfig:
    """Describe a CLIP text encoder.

    Attributes:
        dim, layers, heads, mlp_dim: of its transformer.
        projection_dim: channels of the pooled embedding.
        activation: "quick_gelu" or "gelu".
        vocabulary: token ids.
        length: tokens of a prompt, padded.
        pad: the token behind the end of a prompt.
    """

    dim: int
    layers: int
    heads: int
    mlp_dim: int
    projection_dim: int
    activation: str
    pad: int
    vocabulary: int = 49408
    length: int = 77


@dataclass(frozen=True)
class T5Config:
    """Describe the encoder of T5 1.1 (https://arxiv.org/abs/1910.10683).

    Attributes:
        dim, layers, heads, head_dim, mlp_dim: of its transformer; its feed-forward is gated.
        vocabulary: token ids.
        buckets: of the relative position bias.
        max_distance: beyond which all positions share a bucket.
    """

    dim: int = 4096
    layers: int = 24
    heads: int = 64
    head_dim: int = 64
    mlp_dim: int = 10240
    vocabulary: int = 32128
    buckets: int = 32
    max_distance: int = 128


@dataclass(frozen=True)
class VaeConfig:
    """Describe the autoencoder between pictures and latents.

    Attributes:
        channels: of its finest level.
        multipliers: of those channels for each level, finest first; each level halves the side.
        blocks: residual blocks of a level of the encoder; the decoder has one more.
        latent_channels: of a latent.
        groups: of the group norms.
        scaling, shift: a latent that the transformer sees is (z - shift) * scaling.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    latent_channels: int = 16
    groups: int = 32
    scaling: float = 1.5305
    shift: float = 0.0609

    @property
    def stride(self) -> int:
        """Return the pixels along a latent pixel."""
        return 2 ** (len(self.multipliers) - 1)


@dataclass(frozen=True)
class ControlNetConfig:
    """Describe a ControlNet of Stable Diffusion 3.5 (the 8B family).

    Attributes:
        depth: image-only blocks, each followed by a linear layer that gives a residual.
        heads, head_dim: of each.
        channels: of the condition's latent.
        patch: side of a patch, in latent pixels.
        pooled_dim: channels of the pooled text embedding.
        mlp_ratio: width of the feed-forward parts, as a multiple of `dim`.
    """

    depth: int = 19
    heads: int = 38
    head_dim: int = 64
    channels: int = 16
    patch: int = 2
    pooled_dim: int = 2048
    mlp_ratio: int = 4

    @property
    def dim(self) -> int:
        """Return the channels of a token."""
        return self.heads * self.head_dim


CLIP_L = ClipConfig(768, 12, 12, 3072, 768, "quick_gelu", pad=49407)
CLIP_G = ClipConfig(1280, 32, 20, 5120, 1280, "gelu", pad=0)


@dataclass(frozen=True)
class Sd35Config:
    """Describe a whole model.

    Attributes:
        mmdit, clip_l, clip_g, t5, vae: its parts.
        steps, guidance, sampler: what its authors sample with.
        skip_layers, skip_scale: of skip-layer guidance; none where () and 0.
        skip_from, skip_until: shares of the steps between which it is on.
    """

    mmdit: MmditConfig
    clip_l: ClipConfig = CLIP_L
    clip_g: ClipConfig = CLIP_G
    t5: T5Config = field(default_factory=T5Config)
    vae: VaeConfig = field(default_factory=VaeConfig)
    steps: int = 40
    guidance: float = 4.5
    sampler: str = "dpmpp_2m"
    skip_layers: tuple[int, ...] = ()
    skip_scale: float = 0.0
    skip_from: float = 0.01
    skip_until: float = 0.2

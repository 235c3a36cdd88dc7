"""How many numbers the stages of Stable Diffusion 3.5 hold besides their weights, by formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vkrt.models.sd35.config import ControlNetConfig, Sd35Config
from vkrt.models.sd35.layout import controlnet_widths, mmdit_widths

__all__ = ["TEXT_ROWS", "Shape", "activation_numbers", "held_numbers"]

# Queries, keys and values, the first two of them normalized, and the residual stream.
ATTENTION = 6
TEXT_ROWS = 2


@dataclass(frozen=True)
class Shape:
    """Say how large a generation is.

    Attributes:
        config: of the model.
        width, height: of its pictures, in pixels.
        steps: that are taken.
        texts: different prompts and negative prompts.
        length: tokens of T5.
        rows: that run through the transformer at once.
        tile: latent pixels along the side of a tile of the autoencoder; None is the whole picture.
        control: of the ControlNet, None where there is none.
    """

    config: Sd35Config
    width: int = 1024
    height: int = 1024
    steps: int = 28
    texts: int = TEXT_ROWS
    length: int = 77
    rows: int = 2
    tile: int | None = None
    control: ControlNetConfig | None = None

    @property
    def context(self) -> int:
        """Return the tokens of a text: those of CLIP, then those of T5."""
        return self.config.clip_l.length + self.length

    @property
    def patches(self) -> int:
        """Return the tokens of a picture."""
        side = self.config.vae.stride * self.config.mmdit.patch
        return (self.height // side) * (self.width // side)

    @property
    def coded(self) -> int:
        """Return the pixels that the autoencoder works on at once."""
        pixels = self.width * self.height
        tile = (self.tile or 0) * self.config.vae.stride
        return min(pixels, tile * tile) if tile else pixels


def clip_numbers(shape: Shape, dim: int, mlp_dim: int) -> int:
    """Return texts * length * (attention * dim + 2 * mlp_dim)."""
    tokens = shape.texts * shape.config.clip_l.length
    return tokens * (ATTENTION * dim + 2 * mlp_dim)


def clip_l_numbers(shape: Shape) -> int:
    """Return those of clip_l."""
    return clip_numbers(shape, shape.config.clip_l.dim, shape.config.clip_l.mlp_dim)


def clip_g_numbers(shape: Shape) -> int:
    """Return those of clip_g."""
    return clip_numbers(shape, shape.config.clip_g.dim, shape.config.clip_g.mlp_dim)


def t5_numbers(shape: Shape) -> int:
    """Return texts * length * (3 * mlp_dim + 2 * dim), and heads * length^2 of the bias.

    The feed-forward is gated: the gate, what it gates and their product are held together.
    """
    t5, length = shape.config.t5, shape.length
    return shape.texts * length * (3 * t5.mlp_dim + 2 * t5.dim) + t5.heads * length**2


def conditioning_numbers(shape: Shape) -> int:
    """Return 2 * steps * texts * M, the streams of the table and the table joined of them."""
    return 2 * shape.steps * shape.texts * sum(mmdit_widths(shape.config.mmdit))


def controlnet_conditioning_numbers(shape: Shape) -> int:
    """Return 2 * steps * texts * K, as conditioning_numbers."""
    widths = controlnet_widths(shape.control) if shape.control else []
    return 2 * shape.steps * shape.texts * sum(widths)


def position_numbers(shape: Shape) -> int:
    """Return patches * D, what is gathered."""
    return shape.patches * shape.config.mmdit.dim


def mmdit_numbers(shape: Shape) -> int:
    """Return rows * (patches + context) * D * (2 + 2 * mlp_ratio).

    At its largest a block holds the residual stream and what is modulated of it, and the wide
    layer of the feed-forward before and behind its activation.
    """
    config = shape.config.mmdit
    tokens = shape.rows * (shape.patches + shape.context)
    return tokens * config.dim * (2 + 2 * config.mlp_ratio)


def controlnet_numbers(shape: Shape) -> int:
    """Return rows * patches * D * (2 + 2 * mlp_ratio + depth): the residuals are joined once."""
    if shape.control is None:
        return 0
    config = shape.control
    wide = 2 + 2 * config.mlp_ratio + config.depth
    return shape.rows * shape.patches * config.dim * wide


def vae_decoder_numbers(shape: Shape) -> int:
    """Return pixels * (2 * c1 + c0) of the finest level's channels c0 and the next one's c1.

    The first block of the finest level holds its input and that normalized, both as wide as the
    level below, and what the convolution makes of it.
    """
    vae = shape.config.vae
    finest, *coarser = (vae.channels * factor for factor in vae.multipliers)
    return shape.coded * (2 * (coarser[0] if coarser else finest) + finest)


def vae_encoder_numbers(shape: Shape) -> int:
    """Return pixels * 3 * c0: input, that normalized, and the output of a block."""
    return shape.coded * 3 * shape.config.vae.channels


FORMULAS: dict[str, Callable[[Shape], int]] = {
    "clip_l": clip_l_numbers,
    "clip_g": clip_g_numbers,
    "t5": t5_numbers,
    "conditioning": conditioning_numbers,
    "controlnet_conditioning": controlnet_conditioning_numbers,
    "positions": position_numbers,
    "mmdit": mmdit_numbers,
    "mmdit_controlled": mmdit_numbers,
    "controlnet": controlnet_numbers,
    "vae_encoder": vae_encoder_numbers,
    "vae_decoder": vae_decoder_numbers,
}


def activation_numbers(stage: str, shape: Shape) -> int:
    """Return the numbers that a stage holds at its largest, its weights aside.

    Raises:
        KeyError: there is no such stage.
    """
    return FORMULAS[stage](shape)


def held_numbers(shape: Shape) -> int:
    """Return what the steps read again and again, and the residuals that lead one of them.

    These are steps * texts * (M + K) of the tables, texts * context * D of the embedded text,
    patches * D of the positions and, with a ControlNet, depth * rows * patches * D.
    """
    config, control = shape.config.mmdit, shape.control
    widths = mmdit_widths(config) + (controlnet_widths(control) if control else [])
    tables = shape.steps * shape.texts * sum(widths)
    tokens = shape.texts * shape.context + shape.patches
    if control is not None:
        tokens += control.depth * shape.rows * shape.patches
    return tables + tokens * config.dim

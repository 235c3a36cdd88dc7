"""The columns of a table of modulations: which of them shift, scale and gate what; no torch.

A table row holds vectors of `dim` numbers, called parts: for each block those of the image, then
those of the context; at last those of the final layer. The parts of a stream come in the order
shift, scale, gate of its attention, of its feed-forward and, in a dual block, of the attention of
the image to itself. The last block's context and the final layer have a shift and a scale alone.
Scales have 1 added: x is modulated to x * scale + shift.
"""

from __future__ import annotations

from vkrt.models.sd35.config import ControlNetConfig, MmditConfig

__all__ = [
    "context_parts",
    "controlnet_widths",
    "gate_columns",
    "image_parts",
    "is_scale",
    "mmdit_widths",
]

BLOCK_PARTS = 6
DUAL_PARTS = 9
# Of what is modulated and read, but not written to: a shift and a scale.
READ_PARTS = 2
# Shift, scale and gate.
KINDS = 3
SCALE = 1
GATE = 2


def image_parts(config: MmditConfig, block: int) -> int:
    """Return how many parts modulate the image in a block."""
    return DUAL_PARTS if block in config.dual_blocks else BLOCK_PARTS


def context_parts(config: MmditConfig, block: int) -> int:
    """Return how many parts modulate the context in a block."""
    return READ_PARTS if block == config.depth - 1 else BLOCK_PARTS


def is_scale(part: int) -> bool:
    """Tell whether a part of a stream, counted from 0, is a scale."""
    return part % KINDS == SCALE


def mmdit_widths(config: MmditConfig) -> list[int]:
    """Return the columns of each stream in order: image and context of each block, final layer.

    Their sum is the width of the table.
    """
    streams = (image_parts, context_parts)
    parts = [count(config, block) for block in range(config.depth) for count in streams]
    return [number * config.dim for number in (*parts, READ_PARTS)]


def controlnet_widths(config: ControlNetConfig) -> list[int]:
    """Return the columns of each block of a ControlNet; their sum is the width of its table."""
    return [BLOCK_PARTS * config.dim] * config.depth


def gate_columns(config: MmditConfig, block: int) -> list[slice]:
    """Return the columns that gate what a block adds; where they are 0, it changes nothing.

    Raises:
        ValueError: there is no such block.
    """
    if not 0 <= block < config.depth:
        raise ValueError(f"there is no block {block}, they are 0 to {config.depth - 1}")
    start = sum(mmdit_widths(config)[: 2 * block])
    image = gates(start, image_parts(config, block), config.dim)
    start += image_parts(config, block) * config.dim
    return image + gates(start, context_parts(config, block), config.dim)


def gates(start: int, parts: int, dim: int) -> list[slice]:
    """Return the columns of the gates of a stream whose first column is `start`."""
    firsts = (start + part * dim for part in range(GATE, parts, KINDS))
    return [slice(first, first + dim) for first in firsts]

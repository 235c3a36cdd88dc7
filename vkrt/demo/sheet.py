"""The contact sheet: tiles with captions, in rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from vkrt.media.overlay import draw_overlay

__all__ = ["Tile", "draw_sheet"]

TILE = (300, 220)
CAPTION = 24
GAP = 8
BACKGROUND = (250, 250, 250)
INK = (30, 30, 30)


@dataclass(frozen=True)
class Tile:
    """Hold one picture of the sheet: what was asked, what was answered, and a caption.

    image is (H, W, 3) uint8, mask (H, W) or (N, H, W) bool, points (P, 2) x, y of clicks.
    """

    caption: str
    image: np.ndarray
    mask: np.ndarray | None = None
    points: np.ndarray | Sequence[tuple[int, int]] | None = None
    box: tuple[int, int, int, int] | None = None


def draw_tile(tile: Tile) -> Image.Image:
    """Return a tile of the common size with its caption below."""
    height, width = tile.image.shape[:2]
    masks = np.zeros((0, height, width), bool) if tile.mask is None else tile.mask
    picture = draw_overlay(
        tile.image,
        masks,
        points=tile.points,
        boxes=None if tile.box is None else [tile.box],
    )
    canvas = Image.new("RGB", (TILE[0], TILE[1] + CAPTION), BACKGROUND)
    fitted = ImageOps.contain(picture, TILE, Image.Resampling.LANCZOS)
    canvas.paste(fitted, ((TILE[0] - fitted.width) // 2, (TILE[1] - fitted.height) // 2))
    font = ImageFont.load_default(15)
    ImageDraw.Draw(canvas).text(
        (TILE[0] / 2, TILE[1] + CAPTION / 2), tile.caption, INK, font, anchor="mm"
    )
    return canvas


def draw_sheet(rows: list[list[Tile]], per_row: int = 1) -> Image.Image:
    """Return the sheet: each row of tiles stays together, `per_row` of them side by side."""
    columns = per_row * max(len(row) for row in rows)
    lines = -(-len(rows) // per_row)
    step = (TILE[0] + GAP, TILE[1] + CAPTION + GAP)
    sheet = Image.new("RGB", (GAP + columns * step[0], GAP + lines * step[1]), BACKGROUND)
    for index, row in enumerate(rows):
        # Filled downwards, so that photos stand left and scenes right.
        line, block = index % lines, index // lines
        for place, tile in enumerate(row):
            column = block * (columns // per_row) + place
            position = (GAP + column * step[0], GAP + line * step[1])
            sheet.paste(draw_tile(tile), position)
    return sheet

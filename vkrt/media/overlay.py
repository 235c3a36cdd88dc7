"""A picture of what was found: masks, contours and prompts drawn over the photo."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["COLOURS", "draw_overlay"]

# Far apart in hue and lightness, also for eyes that do not tell red from green (Okabe and Ito).
COLOURS = (
    (0, 114, 178),
    (230, 159, 0),
    (204, 121, 167),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (86, 180, 233),
)
POSITIVE = (0, 200, 60)
NEGATIVE = (225, 30, 40)
RIM = (255, 255, 255)
TINT = 0.5


def draw_overlay(
    photo: np.ndarray,
    masks: np.ndarray,
    points: np.ndarray | Sequence[Sequence[float]] | None = None,
    labels: np.ndarray | Sequence[int] | None = None,
    boxes: np.ndarray | Sequence[Sequence[float]] | None = None,
) -> Image.Image:
    """Return the photo with its masks tinted and outlined, and the prompts drawn on top.

    Args:
        photo: (H, W, 3) uint8 RGB; not changed.
        masks: (N, H, W) or (H, W) bool; a later mask lies over an earlier one.
        points: (P, 2) x, y in pixels.
        labels: (P,), 1 is drawn green and 0 red; None is all 1.
        boxes: (B, 4) or (4,) x0, y0, x1, y1 in pixels.
    """
    height, width = photo.shape[:2]
    line = max(1, round(max(height, width) / 400))
    canvas = photo.copy()
    for index, mask in enumerate(np.asarray(masks, bool).reshape(-1, height, width)):
        paint_mask(canvas, mask, COLOURS[index % len(COLOURS)], line)
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    for box in np.asarray([] if boxes is None else boxes, float).reshape(-1, 4):
        draw_box(draw, box, line)
    spots = np.asarray([] if points is None else points, float).reshape(-1, 2)
    kinds = np.ones(len(spots)) if labels is None else np.asarray(labels).reshape(-1)
    for spot, kind in zip(spots, kinds, strict=True):
        draw_point(draw, spot, POSITIVE if kind > 0 else NEGATIVE, line)
    return picture


def paint_mask(
    canvas: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int], line: int
) -> None:
    """Blend a colour into the masked pixels and draw the mask's edge in it, in place."""
    solid = np.asarray(colour, np.float32)
    canvas[mask] = np.rint(canvas[mask] * (1 - TINT) + solid * TINT).astype(np.uint8)
    canvas[inner_edge(mask, line)] = colour


def inner_edge(mask: np.ndarray, thickness: int) -> np.ndarray:
    """Return (H, W) bool: the mask's pixels within `thickness` of its outside.

    The border of the photo is no edge.
    """
    core = np.pad(mask, thickness, mode="edge")
    for axis in (0, 1):
        shrunk = core.copy()
        for shift in range(1, thickness + 1):
            shrunk &= np.roll(core, shift, axis) & np.roll(core, -shift, axis)
        core = shrunk
    height, width = mask.shape
    return mask & ~core[thickness : thickness + height, thickness : thickness + width]


def draw_box(draw: ImageDraw.ImageDraw, box: np.ndarray, line: int) -> None:
    """Draw a box in the colour of a positive prompt, with a white rim."""
    x0, x1 = sorted((float(box[0]), float(box[2])))
    y0, y1 = sorted((float(box[1]), float(box[3])))
    draw.rectangle((x0 - line, y0 - line, x1 + line, y1 + line), outline=RIM, width=3 * line)
    draw.rectangle((x0, y0, x1, y1), outline=POSITIVE, width=line)


def draw_point(
    draw: ImageDraw.ImageDraw, spot: np.ndarray, colour: tuple[int, int, int], line: int
) -> None:
    """Draw a dot with a white rim."""
    x, y = (float(value) for value in spot)
    for radius, fill in ((5 * line, RIM), (4 * line, colour)):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)

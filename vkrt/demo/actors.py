"""Things that move in procedural clips: painted once, then warped to where each frame has them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from vkrt.demo import shapes, textures
from vkrt.demo.motion import Motion
from vkrt.demo.scenes import paint_surface, shade
from vkrt.demo.shapes import Piece, Shape, Stamp

__all__ = ["Actor", "Look", "Shadow", "make_sheet", "paint_actor", "perform"]

Rng = np.random.Generator
MARGIN = 0.45  # of a radius, around the shape: what bends still finds its texture
CELLS = 3  # a side of the mesh that a texture is warped by


@dataclass(frozen=True)
class Look:
    """What a surface is painted from: equal looks on equal shapes are equal.

    Attributes:
        seed: of its pattern and its colours.
        around: (n, 3) colours from which its own must stand out, in 0..1.
        tint: (3,) gain of its colours.
    """

    seed: int
    around: np.ndarray
    tint: np.ndarray


@dataclass(frozen=True)
class Shadow:
    """A soft shadow: its shift (x, y) and its softness in pixels, its darkness in 0..255."""

    shift: tuple[int, int]
    soft: int
    dark: int


@dataclass(frozen=True)
class Sheet:
    """A painted square about a shape's centre: `reach` radii on each side of it."""

    picture: Image.Image
    reach: float


@dataclass(frozen=True)
class Actor:
    """An object of a clip: its outline (in radii), its surface and its motion.

    label is 0 for one that only hides what lies below.
    """

    shape: Shape
    sheet: Sheet
    motion: Motion
    label: int
    shadow: Shadow | None = None


def make_sheet(shape: Shape, look: Look, radius: float, grey: bool) -> Sheet:
    """Paint the surface of a shape (in radii) at a radius in pixels."""
    rng = np.random.Generator(np.random.PCG64(look.seed))
    reach = float(np.abs(shape.outline()).max()) + MARGIN
    side = int(2 * reach * radius) + 1
    middle = (side / 2, side / 2)
    alpha = np.zeros((side, side), np.uint8)
    stamp = shapes.draw(shapes.place(shape, middle, 0.0, radius), side)
    if stamp is not None:
        alpha[stamp.window()] = stamp.alpha
    frame = textures.make_frame((side, side), middle, shape.angle, radius)
    surface = paint_surface(rng, frame, look.around, grey)
    shade(rng, surface, frame, alpha)
    surface *= look.tint[:, None, None].astype(np.float32)
    pixels = (np.clip(surface, 0, 1) * np.float32(255)).astype(np.uint8)
    return Sheet(
        Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))), side / 2 / radius
    )


def perform(actor: Actor, matrix: np.ndarray, time: float) -> Shape:
    """Return the outline of an actor in pixels, bent and moved by a matrix (3, 3) from radii."""
    lengths = [len(piece.points) for piece in actor.shape.pieces]
    points = np.concatenate([piece.points for piece in actor.shape.pieces])
    points = points + actor.motion.bend.shift(points, time)
    points = points @ matrix[:2, :2].T + matrix[:2, 2]
    parts = np.split(points, np.cumsum(lengths)[:-1])
    pieces = zip(parts, actor.shape.pieces, strict=True)
    return replace(actor.shape, pieces=tuple(Piece(part, old.solid) for part, old in pieces))


def warp(actor: Actor, matrix: np.ndarray, time: float, stamp: Stamp) -> Image.Image:
    """Return the surface of an actor over the window of its stamp."""
    height, width = stamp.alpha.shape
    cells = CELLS if actor.motion.bend.pushes.any() and min(width, height) > 4 * CELLS else 1
    xs = np.linspace(0, width, cells + 1).astype(int)
    ys = np.linspace(0, height, cells + 1).astype(int)
    grid = np.stack(np.meshgrid(xs + stamp.left, ys + stamp.top), -1).reshape(-1, 2)
    points = (grid - matrix[:2, 2]) @ np.linalg.inv(matrix[:2, :2]).T
    points = actor.motion.bend.undo(points, time)
    sheet = actor.sheet
    corners = (points + sheet.reach) * (sheet.picture.width / 2 / sheet.reach)
    corners = corners.reshape(cells + 1, cells + 1, 2)
    mesh = []
    for i in range(cells):
        for j in range(cells):
            quad = corners[[i, i + 1, i + 1, i], [j, j, j + 1, j + 1]].ravel().tolist()
            mesh.append(((int(xs[j]), int(ys[i]), int(xs[j + 1]), int(ys[i + 1])), quad))
    return sheet.picture.transform(
        (width, height), Image.Transform.MESH, mesh, Image.Resampling.BILINEAR
    )


def cast(picture: Image.Image, shadow: Shadow, stamp: Stamp) -> None:
    """Darken a picture in place where a stamp's shadow falls."""
    border = 2 * shadow.soft
    cover = ImageOps.expand(Image.fromarray(stamp.alpha), border)
    cover = cover.filter(ImageFilter.BoxBlur(shadow.soft))
    cover = cover.point([value * shadow.dark // 255 for value in range(256)])
    corner = (stamp.left + shadow.shift[0] - border, stamp.top + shadow.shift[1] - border)
    picture.paste((0, 0, 0), (*corner, corner[0] + cover.width, corner[1] + cover.height), cover)


def paint_actor(
    picture: Image.Image, labels: np.ndarray, actor: Actor, matrix: np.ndarray, time: float
) -> None:
    """Paint an actor over a square picture and write its label into labels (H, W), in place."""
    stamp = shapes.draw(perform(actor, matrix, time), picture.width)
    if stamp is None:
        return
    if actor.shadow is not None:
        cast(picture, actor.shadow, stamp)
    surface = warp(actor, matrix, time, stamp)
    picture.paste(surface, (stamp.left, stamp.top), Image.fromarray(stamp.alpha))
    labels[stamp.window()][stamp.alpha >= 128] = actor.label

"""Random outlines as polygons: generation, placement and antialiased drawing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["Piece", "Shape", "Stamp", "bar", "draw", "place", "random_shape"]

Rng = np.random.Generator
SUPERSAMPLE = 3
TAU = 2 * np.pi


@dataclass(frozen=True)
class Piece:
    """A polygon, (N, 2) float x, y, that adds to the shape, or cuts a hole in what came before."""

    points: np.ndarray
    solid: bool = True


@dataclass(frozen=True)
class Shape:
    """Pieces drawn in order, with the frame (pixels, radians) they were placed in."""

    pieces: tuple[Piece, ...]
    centre: tuple[float, float] = (0.0, 0.0)
    angle: float = 0.0
    radius: float = 1.0

    def outline(self) -> np.ndarray:
        """Return the points of all solid pieces, (N, 2)."""
        return np.concatenate([p.points for p in self.pieces if p.solid])


@dataclass(frozen=True)
class Stamp:
    """Coverage of a shape, (h, w) uint8, whose corner lies at (left, top) of the picture."""

    left: int
    top: int
    alpha: np.ndarray

    def window(self) -> tuple[slice, slice]:
        """Return the rows and columns of the picture that the stamp covers."""
        height, width = self.alpha.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def place(
    shape: Shape, centre: tuple[float, float], angle: float, radius: float, aspect: float = 1.0
) -> Shape:
    """Move a unit shape to pixels: squeeze its y axis by aspect, turn it, scale it, shift it."""
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = radius * np.array([[cos, sin], [-sin * aspect, cos * aspect]])
    pieces = tuple(Piece(p.points @ matrix + np.asarray(centre), p.solid) for p in shape.pieces)
    return Shape(pieces, centre, angle, radius)


def draw(shape: Shape, size: int, margin: int = 0) -> Stamp | None:
    """Draw the part of a shape inside a size x size picture; None when it lies outside."""
    points = shape.outline()
    low = np.clip(np.floor(points.min(0)) - 1 - margin, 0, size).astype(int)
    high = np.clip(np.ceil(points.max(0)) + 1 + margin, 0, size).astype(int)
    width, height = (high - low).tolist()
    if width < 2 or height < 2:
        return None
    sheet = Image.new("L", (width * SUPERSAMPLE, height * SUPERSAMPLE))
    pen = ImageDraw.Draw(sheet)
    for piece in shape.pieces:
        corners = ((piece.points - low) * SUPERSAMPLE - 0.5).ravel().tolist()
        pen.polygon(corners, fill=255 if piece.solid else 0)
    return Stamp(int(low[0]), int(low[1]), np.asarray(sheet.reduce(SUPERSAMPLE)))


@cache
def unit_circle(points: int) -> np.ndarray:
    """Return the unit circle, (points, 2), read only."""
    turn = np.linspace(0, TAU, points, endpoint=False)
    made = np.stack([np.cos(turn), np.sin(turn)], 1)
    made.flags.writeable = False
    return made


def circle(
    x: float = 0.0, y: float = 0.0, rx: float = 1.0, ry: float | None = None, points: int = 48
) -> np.ndarray:
    """Return an ellipse, (points, 2)."""
    return unit_circle(points) * (rx, rx if ry is None else ry) + (x, y)


def wobble(rng: Rng, strength: float, points: int = 72, modes: int = 5) -> np.ndarray:
    """Return a smooth closed curve with a random Fourier radius about 1, (points, 2)."""
    turn = np.linspace(0, TAU, points, endpoint=False)
    order = np.arange(2, modes + 2)
    weight = strength * rng.standard_normal(modes) / (order - 1)
    phase = rng.uniform(0, TAU, modes)
    radius = 1 + (weight[:, None] * np.cos(order[:, None] * turn + phase[:, None])).sum(0)
    radius = np.clip(radius, 0.35, 1.7)
    return np.stack([radius * np.cos(turn), radius * np.sin(turn)], 1)


def ellipse(rng: Rng) -> Shape:
    """Make a disc, to be squeezed by its placement."""
    return Shape((Piece(circle()),))


def blob(rng: Rng) -> Shape:
    """Make a smooth deformed disc."""
    return Shape((Piece(wobble(rng, rng.uniform(0.1, 0.35))),))


def polygon(rng: Rng) -> Shape:
    """Make a regular or irregular polygon of 3 to 8 corners."""
    corners = int(rng.integers(3, 9))
    jitter = rng.choice([0.0, 0.5]) * rng.uniform(-1, 1, corners) / corners * np.pi
    turn = np.arange(corners) * TAU / corners + jitter
    radius = rng.uniform(0.75, 1.15, corners) if jitter.any() else np.ones(corners)
    return Shape((Piece(np.stack([radius * np.cos(turn), radius * np.sin(turn)], 1)),))


def star(rng: Rng) -> Shape:
    """Make a star of 4 to 9 tips."""
    tips = int(rng.integers(4, 10))
    turn = np.arange(2 * tips) * np.pi / tips
    radius = np.where(np.arange(2 * tips) % 2, rng.uniform(0.45, 0.75), 1.1)
    return Shape((Piece(np.stack([radius * np.cos(turn), radius * np.sin(turn)], 1)),))


def box(rng: Rng) -> Shape:
    """Make a superellipse, from a rounded to a nearly sharp rectangle, sometimes tapered."""
    turn = np.linspace(0, TAU, 72, endpoint=False)
    power = rng.uniform(0.08, 0.5)
    x, y = (np.sign(f) * np.abs(f) ** power for f in (np.cos(turn), np.sin(turn)))
    taper = 1 + rng.choice([0.0, rng.uniform(-0.35, 0.35)]) * y
    return Shape((Piece(np.stack([0.9 * x * taper, 0.9 * y], 1)),))


def ring(rng: Rng) -> Shape:
    """Make a ring whose band is thick enough to click on."""
    return Shape((Piece(circle()), Piece(circle(rx=rng.uniform(0.3, 0.6)), solid=False)))


def ribbon(path: np.ndarray, widths: np.ndarray) -> tuple[Piece, ...]:
    """Thicken a path, (N, 2), by half-widths, (N,), into quads with round joints."""
    step = np.gradient(path, axis=0)
    normal = np.stack([-step[:, 1], step[:, 0]], 1) / (np.linalg.norm(step, axis=1)[:, None] + 1e-6)
    left, right = path + normal * widths[:, None], path - normal * widths[:, None]
    quads = [
        Piece(np.stack([left[i], left[i + 1], right[i + 1], right[i]]))
        for i in range(len(path) - 1)
    ]
    joints = [Piece(circle(x, y, w, points=14)) for (x, y), w in zip(path, widths, strict=True)]
    return tuple(quads + joints)


def stroke(rng: Rng) -> Shape:
    """Make a thick curved, often tapering, limb."""
    along = np.linspace(-1, 1, 14)
    bend = rng.uniform(-0.7, 0.7) * along**2 + rng.uniform(-0.4, 0.4) * np.sin(3 * along)
    widths = rng.uniform(0.18, 0.34) * (1 + rng.uniform(-0.5, 0.5) * along)
    return Shape(ribbon(np.stack([1.1 * along, bend - bend.mean()], 1), widths))


def bar(rng: Rng) -> Shape:
    """Make a thin, slightly bent bar or branch: an occluder."""
    along = np.linspace(-1, 1, 10)
    bend = rng.choice([0.0, 0.25]) * rng.uniform(-1, 1) * along**2
    widths = np.full(10, rng.uniform(0.012, 0.035))
    return Shape(ribbon(np.stack([along, bend], 1), widths))


def cluster(rng: Rng) -> Shape:
    """Make a union of 2 to 4 overlapping blobs."""
    turn = rng.uniform(0, TAU)
    pieces = [Piece(0.7 * wobble(rng, 0.15))]
    for _ in range(int(rng.integers(1, 4))):
        turn += rng.uniform(1.2, 2.6)
        reach, radius = rng.uniform(0.55, 0.8), rng.uniform(0.3, 0.5)
        offset = reach * np.array([np.cos(turn), np.sin(turn)])
        pieces.append(Piece(radius * wobble(rng, 0.15) + offset))
    return Shape(tuple(pieces))


def creature(rng: Rng) -> Shape:
    """Make a body with a head, ears, legs and sometimes a tail, upright (y points down)."""
    long, tall = rng.uniform(0.5, 0.85), rng.uniform(0.35, 0.6)
    pieces = [Piece(wobble(rng, 0.08) * np.array([long, tall]))]
    hx, hy = rng.uniform(0.1, 1.0) * long, -tall * rng.uniform(0.7, 1.1)
    hr = rng.uniform(0.28, 0.42)
    pieces.append(Piece(wobble(rng, 0.06) * hr + np.array([hx, hy])))
    tip = hr * rng.uniform(1.3, 1.8)
    for side in (-0.6, 0.6):
        ear = [[side - 0.35, -0.6], [side * 1.3, -tip / hr], [side + 0.35, -0.6]]
        pieces.append(Piece(np.array(ear) * hr + np.array([hx, hy])))
    for x in np.linspace(-0.7, 0.7, int(rng.choice([2, 4]))) * long:
        foot = np.array([[x, 0.0], [x + rng.uniform(-0.12, 0.12), tall + rng.uniform(0.15, 0.5)]])
        pieces += ribbon(foot, np.full(2, rng.uniform(0.08, 0.14)))
    if rng.random() < 0.5:
        path = np.array([[-0.8, 0], [-1.15, -0.1], [-1.3, -0.4], [-1.25, -0.7]]) * [long, 1]
        pieces += ribbon(path, np.full(4, 0.08))
    return Shape(tuple(pieces))


def vessel(rng: Rng) -> Shape:
    """Make an upright turned profile (cup, vase, bottle, rocket), at times with handle or fins."""
    y = np.linspace(-1, 1, 24)
    knots = rng.uniform(0.3, 0.75, 5)
    if rng.random() < 0.35:
        knots[:2] = (0.02, 0.3)
    half = np.interp(y, np.linspace(-1, 1, 5), knots)
    half = np.convolve(np.pad(half, 2, mode="edge"), np.ones(5) / 5, "valid")
    body = Piece(np.concatenate([np.stack([half, y], 1), np.stack([-half, y], 1)[::-1]]))
    extra: list[Piece] = []
    choice = rng.random()
    if choice < 0.4:
        x, r = float(half[12]), rng.uniform(0.35, 0.5)
        extra = [Piece(circle(x, 0, r)), Piece(circle(x, 0, r - 0.15), solid=False)]
    elif choice < 0.6:
        w = float(half[-1]) + rng.uniform(0.2, 0.4)
        extra = [Piece(np.array([[-w, 1.1], [0, 0.1], [w, 1.1], [0, 0.8]]))]
    return Shape((*extra, body))


# Upright makers keep their up direction when placed, as things in photographs do.
UPRIGHT: tuple[Callable[[Rng], Shape], ...] = (creature, vessel)
FREE: tuple[Callable[[Rng], Shape], ...] = (
    ellipse,
    blob,
    blob,
    polygon,
    star,
    box,
    box,
    ring,
    stroke,
    cluster,
)


def random_shape(
    rng: Rng, centre: tuple[float, float], radius: float, upright: float = 0.15
) -> Shape:
    """Make and place a random shape; upright is the chance of a creature or a vessel."""
    if rng.random() < upright:
        made = UPRIGHT[int(rng.integers(len(UPRIGHT)))](rng)
        mirror = Shape(tuple(Piece(p.points * [-1, 1], p.solid) for p in made.pieces))
        made = mirror if rng.random() < 0.5 else made
        return place(made, centre, rng.normal(0, 0.2), radius, rng.uniform(0.8, 1.2))
    made = FREE[int(rng.integers(len(FREE)))](rng)
    aspect = rng.uniform(0.45, 1.0)
    return place(made, centre, rng.uniform(0, TAU), radius / np.sqrt(aspect), aspect)

"""Random colours and surface patterns: scalar maps in 0..1 looked up in a small palette."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

__all__ = [
    "Frame",
    "contrasting_palette",
    "look_up",
    "make_frame",
    "part_mask",
    "random_fill",
    "random_palette",
    "value_noise",
]

Rng = np.random.Generator
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
EARTHY = np.array([1.3, 1.0, 0.65], np.float32)
# Weights of a palette's 3 colours along a ramp of 256 steps.
STOPS = np.stack(
    [np.interp(np.linspace(0, 2, 256), range(3), np.eye(3)[k]) for k in range(3)], 1
).astype(np.float32)


@dataclass(frozen=True)
class Frame:
    """Coordinates in units of an object's radius, turned with it: u and v, (h, w) float32."""

    u: np.ndarray
    v: np.ndarray
    radius: float

    @property
    def shape(self) -> tuple[int, int]:
        """Return (h, w) in pixels."""
        return self.u.shape[0], self.u.shape[1]


def make_frame(
    shape: tuple[int, int], origin: tuple[float, float], angle: float, radius: float
) -> Frame:
    """Build the frame of a (h, w) window, origin (x, y) pixels from its corner, angle radians."""
    x = (np.arange(shape[1], dtype=np.float32) + np.float32(0.5 - origin[0]))[None] / radius
    y = (np.arange(shape[0], dtype=np.float32) + np.float32(0.5 - origin[1]))[:, None] / radius
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return Frame(
        (x * cos + y * sin).astype(np.float32), (y * cos - x * sin).astype(np.float32), radius
    )


def random_colours(rng: Rng, count: int) -> np.ndarray:
    """Pick colours, (count, 3) float32 in 0..1: vivid, earthy, greyish or near black or white."""
    kind = rng.random((count, 1), np.float32)
    vivid = rng.random((count, 3), np.float32)
    level = rng.random((count, 1), np.float32)
    level = np.where(kind > 0.85, np.where(level < 0.5, 0.08, 0.9), 0.1 + 0.8 * level)
    tint = np.where(kind < 0.6, EARTHY, 0.8 + 0.4 * vivid)
    return np.where(kind < 0.4, vivid, np.clip(level * tint, 0.02, 0.97)).astype(np.float32)


def random_palettes(rng: Rng, count: int) -> np.ndarray:
    """Pick palettes of 3 colours, (count, 3, 3): shades of one colour mostly, else contrasts."""
    colours = random_colours(rng, 3 * count).reshape(count, 3, 3)
    shift = rng.uniform(0.08, 0.3, (count, 3, 1)) * rng.choice([-1, 1], (count, 3, 1)) + rng.normal(
        0, 0.06, (count, 3, 3)
    )
    shades = np.clip(colours[:, :1] + shift, 0.01, 0.99)
    shaded = rng.random((count, 3, 1)) < 0.7
    shaded[:, 0] = False
    palettes = np.where(shaded, shades, colours).astype(np.float32)
    two = rng.random(count) < 0.5
    palettes[two, 1] = (palettes[two, 0] + palettes[two, 2]) / 2
    return palettes


def random_palette(rng: Rng) -> np.ndarray:
    """Pick one palette, (3, 3) float32."""
    return random_palettes(rng, 1)[0]


def colour_gap(a: np.ndarray, b: np.ndarray, grey: bool) -> np.ndarray:
    """Return how far apart colours (..., 3) look; by luminance alone when grey."""
    gap = a - b
    luma = gap @ LUMA
    if grey:
        return np.abs(luma)
    return np.abs(luma) + 0.5 * np.abs(gap - luma[..., None]).max(-1)


def contrasting_palette(rng: Rng, around: np.ndarray, grey: bool, gap: float = 0.26) -> np.ndarray:
    """Pick a palette, (3, 3), whose mean differs by gap from nearly all colours around, (n, 3)."""
    palettes = random_palettes(rng, 10)
    if not len(around):
        return palettes[0]
    around = around[:: len(around) // 64 + 1]
    gaps = colour_gap(around[None], palettes.mean(1)[:, None], grey)
    scores = np.sort(gaps, axis=1)[:, len(around) // 8]
    # The first good one, not the best: always the best would leave only black and white.
    return palettes[int(np.argmax(np.minimum(scores, gap)))]


def look_up(palette: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Colour values (h, w) in 0..1 by interpolating a (3, 3) palette: (3, h, w) float32."""
    index = (np.clip(values, 0, 1) * np.float32(255)).astype(np.uint8)
    return np.take((STOPS @ palette).T, index, axis=1)


def layer_noise(rng: Rng, shape: tuple[int, int], cell_x: float, cell_y: float) -> np.ndarray:
    """Return smooth noise, (h, w) float32 about 0..1, with features of the given cell pixels."""
    rows, cols = int(shape[0] / cell_y) + 2, int(shape[1] / cell_x) + 2
    grid = Image.fromarray(rng.random((rows, cols), dtype=np.float32))
    inside = (0.5, 0.5, 0.5 + shape[1] / cell_x, 0.5 + shape[0] / cell_y)
    return np.asarray(grid.resize((shape[1], shape[0]), Image.Resampling.BICUBIC, box=inside))


def value_noise(rng: Rng, shape: tuple[int, int], cell: float, octaves: int = 3) -> np.ndarray:
    """Sum octaves of noise from cell pixels downwards: (h, w) float32 about 0..1."""
    total = np.zeros(shape, np.float32)
    weight, norm = 1.0, 0.0
    for _ in range(octaves):
        cell = max(cell, 1.0)
        total += np.float32(weight) * layer_noise(rng, shape, cell, cell)
        norm, weight, cell = norm + weight, weight * 0.55, cell / 2.2
    return (total / np.float32(norm) - 0.5) * np.float32(1.5) + np.float32(0.5)


def sharpen(wave: np.ndarray, hardness: float) -> np.ndarray:
    """Turn a wave in -1..1 into 0..1 with edges that harden as hardness grows."""
    return np.clip(wave * np.float32(hardness) + np.float32(0.5), 0, 1)


def frequency(rng: Rng, frame: Frame, low: float = 4.0, high: float = 18.0) -> np.float32:
    """Pick radians per radius so that a period stays over about 5 pixels."""
    return np.float32(min(rng.uniform(low, high), frame.radius * 1.2))


def plain(rng: Rng, frame: Frame) -> np.ndarray:
    """Return one flat value."""
    return np.full(frame.shape, 0.5, np.float32)


def linear(rng: Rng, frame: Frame) -> np.ndarray:
    """Return a straight gradient."""
    return frame.u * np.float32(0.5) + np.float32(0.5)


def radial(rng: Rng, frame: Frame) -> np.ndarray:
    """Return a gradient from a point near the centre."""
    du, dv = rng.uniform(-0.4, 0.4, 2).astype(np.float32)
    return np.sqrt((frame.u - du) ** 2 + (frame.v - dv) ** 2) * np.float32(0.8)


def cloudy(rng: Rng, frame: Frame) -> np.ndarray:
    """Return multi-octave noise."""
    return value_noise(rng, frame.shape, rng.uniform(0.15, 1.0) * frame.radius + 3, 4)


def blotches(rng: Rng, frame: Frame) -> np.ndarray:
    """Return hard-edged noise patches, like a cow's or a tabby's coat."""
    noise = value_noise(rng, frame.shape, rng.uniform(0.2, 0.6) * frame.radius + 3, 2)
    return sharpen(noise - np.float32(0.5), rng.uniform(4, 12))


def stripes(rng: Rng, frame: Frame) -> np.ndarray:
    """Return straight stripes."""
    return sharpen(np.sin(frame.u * frequency(rng, frame)), rng.uniform(0.5, 4))


def checkers(rng: Rng, frame: Frame) -> np.ndarray:
    """Return a checkerboard."""
    f = frequency(rng, frame)
    return sharpen(np.sin(frame.u * f) * np.sin(frame.v * f), rng.uniform(1, 6))


def spots(rng: Rng, frame: Frame) -> np.ndarray:
    """Return a lattice of spots."""
    f = frequency(rng, frame, 6, 20)
    wave = np.cos(frame.u * f) + np.cos(frame.v * f) - np.float32(rng.uniform(0.3, 1.2))
    return sharpen(wave, rng.uniform(1, 5))


def grain(rng: Rng, frame: Frame) -> np.ndarray:
    """Return warped stripes, like wood or a tiger."""
    warp = value_noise(rng, frame.shape, 0.5 * frame.radius + 3, 2)
    wave = frame.u + np.float32(rng.uniform(0.2, 0.8)) * warp
    return sharpen(np.sin(wave * frequency(rng, frame, 6, 22)), rng.uniform(0.5, 3))


def fur(rng: Rng, frame: Frame) -> np.ndarray:
    """Return fine noise drawn out along one axis, over a coarse tone."""
    fine = layer_noise(rng, frame.shape, *rng.permutation([1.5, rng.uniform(3, 12)]))
    tone = layer_noise(rng, frame.shape, *[0.5 * frame.radius + 4] * 2)
    return np.float32(0.45) * fine + np.float32(0.55) * tone


Fill = Callable[[Rng, Frame], np.ndarray]
OBJECT_FILLS: tuple[Fill, ...] = (
    plain,
    plain,
    linear,
    radial,
    cloudy,
    cloudy,
    blotches,
    stripes,
    checkers,
    spots,
    grain,
    fur,
    fur,
)
BACKGROUND_FILLS: tuple[Fill, ...] = (
    plain,
    linear,
    linear,
    radial,
    cloudy,
    cloudy,
    blotches,
    stripes,
    checkers,
    grain,
    fur,
)
SMOOTH_FILLS: tuple[Fill, ...] = (plain, linear, radial, cloudy)


def random_fill(rng: Rng, frame: Frame, fills: tuple[Fill, ...] = OBJECT_FILLS) -> np.ndarray:
    """Draw one of the fills, half the time with fine noise on top: (h, w) float32."""
    values = fills[int(rng.integers(len(fills)))](rng, frame)
    if rng.random() < 0.5:
        fine = layer_noise(rng, frame.shape, *[rng.uniform(1.2, 4)] * 2) - np.float32(0.5)
        values = values + np.float32(rng.uniform(0.1, 0.5)) * fine
    return values


def part_mask(rng: Rng, frame: Frame) -> np.ndarray:
    """Choose a sub-region of an object (end, band, spot or patch), (h, w) float32 in 0..1."""
    kind, at = rng.integers(4), np.float32(rng.uniform(-0.4, 0.4))
    if kind == 0:
        wave = frame.v - at
    elif kind == 1:
        wave = np.float32(rng.uniform(0.1, 0.3)) - np.abs(frame.u - at)
    elif kind == 2:
        wave = np.float32(rng.uniform(0.2, 0.45)) - np.hypot(frame.u - at, frame.v + at)
    else:
        wave = value_noise(rng, frame.shape, 0.7 * frame.radius + 4, 1) - np.float32(0.6)
    return sharpen(wave, frame.radius * 0.5)

"""Procedural pictures with exact object masks, for training, calibration and quality gates."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from vkrt.demo import shapes, textures
from vkrt.demo.shapes import Shape, Stamp
from vkrt.demo.textures import Frame

__all__ = ["Scene", "make_scene"]

Rng = np.random.Generator
MIN_AREA = 0.0015  # of the picture: anything smaller cannot be learnt at this resolution


@dataclass(frozen=True)
class Scene:
    """A procedural picture with the mask of each object in it.

    image is (H, W, 3) uint8; labels is (H, W) int16, 0 for the background and 1..count for
    the visible pixels of each object.
    """

    image: np.ndarray
    labels: np.ndarray
    count: int

    def areas(self) -> np.ndarray:
        """Return the visible pixels of each object, (count,) int64."""
        return np.bincount(self.labels.ravel(), minlength=self.count + 1)[1:]


@dataclass(frozen=True)
class Layer:
    """A placed shape and the seed of its look; an unlabelled one only hides what lies below."""

    shape: Shape
    paint_seed: int
    labelled: bool = True


@dataclass(frozen=True)
class Plan:
    """What to compose: the layers from back to front, and the style of the background."""

    layers: tuple[Layer, ...]
    smooth_background: bool
    background_blur: float  # pixels


@dataclass
class Canvas:
    """A picture in the making: (3, H, W) float32 in 0..1 with its labels, (H, W) int16."""

    pixels: np.ndarray
    labels: np.ndarray
    grey: bool

    @property
    def size(self) -> int:
        """Return the side in pixels."""
        return self.pixels.shape[1]


def make_layer(rng: Rng, shape: Shape, labelled: bool = True) -> Layer:
    """Give a shape a look of its own."""
    return Layer(shape, int(rng.integers(2**62)), labelled)


def plan_few(rng: Rng, size: int) -> list[Layer]:
    """Lay out 2 to 7 larger objects."""
    layers = []
    for _ in range(int(rng.integers(2, 8))):
        x, y = rng.uniform(0.08, 0.92, 2) * size
        radius = rng.uniform(0.1, 0.27) * size
        layers.append(make_layer(rng, shapes.random_shape(rng, (x, y), radius, 0.25)))
    return layers


def plan_leaves(rng: Rng, size: int, most: int = 40) -> list[Layer]:
    """Lay out 15 to 40 shapes (or at most so many) of power-law sizes that clutter the picture."""
    count, small, large = min(int(rng.integers(15, 41)), most), 0.075, 0.3
    # Inverse transform of a density that falls as radius**-2.5.
    draw = rng.random(count)
    radii = (small**-1.5 - draw * (small**-1.5 - large**-1.5)) ** (-1 / 1.5) * size
    layers = []
    for radius in np.sort(radii)[::-1] if rng.random() < 0.5 else radii:
        x, y = rng.uniform(0.0, 1.0, 2) * size
        layers.append(make_layer(rng, shapes.random_shape(rng, (x, y), float(radius), 0.1)))
    return layers


def plan_studio(rng: Rng, size: int) -> list[Layer]:
    """Lay out 1 to 3 large objects near the centre, like a photograph of a cat or a cup."""
    layers = []
    for i in range(int(rng.choice([1, 1, 2, 3]))):
        x, y = np.clip(0.5 + rng.normal(0, 0.06 if i == 0 else 0.22, 2), 0.15, 0.85) * size
        radius = rng.uniform(0.2, 0.42) * size / (1 + 0.4 * i)
        layers.append(make_layer(rng, shapes.random_shape(rng, (x, y), radius, 0.6)))
    return layers


def plan_occluders(rng: Rng, size: int) -> list[Layer]:
    """Lay out thin bars or branches in front of everything."""
    angle, layers = rng.uniform(0, np.pi), []
    for _ in range(int(rng.integers(1, 5))):
        x, y = rng.uniform(0.1, 0.9, 2) * size
        turn = angle + rng.normal(0, 0.15)
        shape = shapes.place(shapes.bar(rng), (x, y), turn, rng.uniform(0.5, 1.2) * size)
        layers.append(make_layer(rng, shape, labelled=False))
    return layers


def make_plan(rng: Rng, size: int) -> Plan:
    """Choose a kind of scene and lay it out."""
    kind = rng.random()
    planner = plan_few if kind < 0.4 else plan_leaves if kind < 0.62 else plan_studio
    layers = planner(rng, size)
    if rng.random() < 0.12:
        layers += plan_occluders(rng, size)
    studio = planner is plan_studio
    blur = rng.uniform(0.5, 5) * size / 256 if rng.random() < (0.7 if studio else 0.2) else 0.0
    return Plan(tuple(layers), studio and rng.random() < 0.6, blur)


def blurred(alpha: np.ndarray, radius: float) -> np.ndarray:
    """Blur an (h, w) uint8 coverage by a radius in pixels: float32 in 0..1."""
    soft = Image.fromarray(alpha).filter(ImageFilter.BoxBlur(float(radius)))
    return np.asarray(soft) * np.float32(1 / 255)


def defocus(pixels: np.ndarray, radius: float) -> np.ndarray:
    """Blur (3, H, W) float32 pixels; a wide blur is done at a half scale, for speed."""
    picture = to_picture(pixels)
    if radius < 2:
        soft = picture.filter(ImageFilter.GaussianBlur(float(radius)))
    else:
        small = picture.reduce(2).filter(ImageFilter.GaussianBlur(float(radius) / 2))
        soft = small.resize(picture.size, Image.Resampling.BILINEAR)
    return np.asarray(soft).transpose(2, 0, 1) * np.float32(1 / 255)


def paint_background(rng: Rng, canvas: Canvas, smooth: bool, blur: float) -> None:
    """Fill the canvas: a pattern, two zones with a horizon, or leaves without labels."""
    size, kind = canvas.size, rng.random()
    fills = textures.SMOOTH_FILLS if smooth else textures.BACKGROUND_FILLS
    frame = whole_frame(rng, size)
    values = textures.random_fill(rng, frame, fills)
    canvas.pixels[:] = textures.look_up(textures.random_palette(rng), values)
    if kind < 0.2:
        line = int(rng.uniform(0.3, 0.8) * size)
        lower = Frame(frame.u[line:], frame.v[line:], frame.radius)
        palette = textures.contrasting_palette(
            rng, canvas.pixels[:, line::8, ::8].reshape(3, -1).T, canvas.grey
        )
        canvas.pixels[:, line:] = textures.look_up(palette, textures.random_fill(rng, lower, fills))
    elif kind < 0.35:
        blur = max(blur, size / 40)  # sharp leaves would look like objects
        for layer in plan_leaves(rng, size, most=11):
            paint_layer(canvas, layer, 0)
    if blur > 0:
        canvas.pixels[:] = defocus(canvas.pixels, blur)


def whole_frame(rng: Rng, size: int) -> Frame:
    """Make a frame over the whole picture, randomly turned."""
    return textures.make_frame(
        (size, size), (size / 2, size / 2), rng.uniform(0, 2 * np.pi), size * 0.6
    )


def colours_around(canvas: Canvas, shape: Shape) -> np.ndarray:
    """Sample the canvas along a shape's outline, (n, 3)."""
    points = np.floor(shape.outline()).astype(int)
    inside = ((points >= 0) & (points < canvas.size)).all(1)
    x, y = points[inside].T
    return canvas.pixels[:, y, x].T


def paint_surface(rng: Rng, frame: Frame, around: np.ndarray, grey: bool) -> np.ndarray:
    """Texture an object in colours that stand out from those around: (3, h, w) float32."""
    palette = textures.contrasting_palette(rng, around, grey)
    surface = textures.look_up(palette, textures.random_fill(rng, frame))
    if rng.random() < 0.25:
        other = textures.contrasting_palette(rng, around, grey, 0.2)
        patch = textures.look_up(other, textures.random_fill(rng, frame))
        surface += textures.part_mask(rng, frame) * (patch - surface)
    return surface


def shade(rng: Rng, surface: np.ndarray, frame: Frame, alpha: np.ndarray) -> None:
    """Light an object's surface in place: direction, roundness, dark edges, a highlight."""
    if rng.random() < 0.3:
        return
    lu, lv = rng.uniform(-0.6, 0.6, 2).astype(np.float32)
    du, dv = frame.u - lu, frame.v - lv
    far = du * du + dv * dv
    if rng.random() < 0.5:
        gain = np.float32(1.15) - np.float32(rng.uniform(0.1, 0.3)) * far
    else:
        gain = np.float32(1) + np.float32(0.4) * (frame.u * lu + frame.v * lv)
    gain = np.maximum(gain, np.float32(0.45))
    if rng.random() < 0.4:
        depth = np.float32(rng.uniform(0.3, 0.8))
        gain *= 1 - depth + depth * blurred(alpha, max(1.0, 0.12 * frame.radius))
    surface *= gain
    if rng.random() < 0.25:
        glow = np.maximum(0, np.float32(1) - far * np.float32(rng.uniform(6, 30)))
        surface += np.float32(rng.uniform(0.2, 0.6)) * glow * glow


def cast_shadow(rng: Rng, canvas: Canvas, shape: Shape) -> None:
    """Darken what lies below an object with its soft, shifted outline."""
    shift = rng.normal(0, 0.012, 2) * canvas.size + [0, 0.012 * canvas.size]
    soft = rng.uniform(0.008, 0.03) * canvas.size
    moved = Shape(tuple(shapes.Piece(p.points + shift, p.solid) for p in shape.pieces))
    stamp = shapes.draw(moved, canvas.size, margin=int(2 * soft) + 1)
    if stamp is not None:
        dark = np.float32(rng.uniform(0.15, 0.5)) * blurred(stamp.alpha, soft)
        rows, columns = stamp.window()
        canvas.pixels[:, rows, columns] *= 1 - dark


def object_frame(shape: Shape, stamp: Stamp) -> Frame:
    """Build the texture frame of a placed shape over the window of its stamp."""
    origin = (shape.centre[0] - stamp.left, shape.centre[1] - stamp.top)
    return textures.make_frame(stamp.alpha.shape, origin, shape.angle, shape.radius)


def paint_layer(canvas: Canvas, layer: Layer, label: int) -> None:
    """Paint a layer over the canvas and write its label (0 hides what lies below)."""
    rng = np.random.Generator(np.random.PCG64(layer.paint_seed))
    stamp = shapes.draw(layer.shape, canvas.size)
    if stamp is None:
        return
    around = colours_around(canvas, layer.shape)
    if rng.random() < 0.4:
        cast_shadow(rng, canvas, layer.shape)
    frame = object_frame(layer.shape, stamp)
    surface = paint_surface(rng, frame, around, canvas.grey)
    shade(rng, surface, frame, stamp.alpha)
    cover = stamp.alpha * np.float32(1 / 255)
    rows, columns = stamp.window()
    below = canvas.pixels[:, rows, columns]
    np.clip(surface, 0, 1, out=surface)
    surface -= below
    surface *= cover
    below += surface
    canvas.labels[rows, columns][stamp.alpha >= 128] = label


def relight(rng: Rng, canvas: Canvas) -> None:
    """Jitter the light and the colours of the whole picture in place."""
    pixels = canvas.pixels
    if rng.random() < 0.35:
        frame = whole_frame(rng, canvas.size)
        slope = frame.u if rng.random() < 0.5 else -(frame.u**2 + frame.v**2)
        pixels *= 1 + np.float32(rng.uniform(0.1, 0.35)) * slope
    if rng.random() < 0.5:
        pixels *= rng.uniform(0.85, 1.15, (3, 1, 1)).astype(np.float32)
    if canvas.grey or rng.random() < 0.3:
        keep = np.float32(0 if canvas.grey else rng.uniform(0.4, 1.2))
        luma = np.tensordot(textures.LUMA, pixels, 1)
        pixels[:] = luma + keep * (pixels - luma)
    if rng.random() < 0.5:
        gain, lift = np.float32(rng.uniform(0.75, 1.2)), np.float32(rng.uniform(-0.06, 0.06))
        pixels[:] = (pixels - np.float32(0.5)) * gain + (np.float32(0.5) + lift)


def to_picture(pixels: np.ndarray) -> Image.Image:
    """Turn (3, H, W) float32 in 0..1 into an 8-bit picture."""
    planes = (np.clip(pixels, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))


def expose(rng: Rng, canvas: Canvas) -> np.ndarray:
    """Photograph the canvas: slight blur, sensor noise, JPEG; (H, W, 3) uint8."""
    if rng.random() < 0.3:
        noise = rng.standard_normal((1 if canvas.grey else 3, *canvas.labels.shape), np.float32)
        canvas.pixels += np.float32(rng.uniform(0.005, 0.04)) * noise
    picture = to_picture(canvas.pixels)
    if rng.random() < 0.3:
        picture = picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.1))))
    if rng.random() < 0.25:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=int(rng.integers(35, 96)))
        picture = Image.open(buffer).convert("RGB")
    return np.asarray(picture).copy()


def tidy_labels(labels: np.ndarray) -> tuple[np.ndarray, int]:
    """Drop negligible objects to 0 and number the rest 1..count in painting order."""
    areas = np.bincount(labels.ravel())
    keep = areas >= MIN_AREA * labels.size
    keep[0] = False
    table = np.where(keep, np.cumsum(keep), 0).astype(np.int16)
    return table[labels], int(keep.sum())


def compose(rng: Rng, plan: Plan, size: int) -> Canvas:
    """Paint the background of a plan and its layers from back to front."""
    canvas = Canvas(
        np.empty((3, size, size), np.float32),
        np.zeros((size, size), np.int16),
        grey=bool(rng.random() < 0.08),
    )
    paint_background(rng, canvas, plan.smooth_background, plan.background_blur)
    for i, layer in enumerate(plan.layers):
        paint_layer(canvas, layer, i + 1 if layer.labelled else 0)
    return canvas


def make_scene(seed: int, size: int = 256) -> Scene:
    """Make the picture of a seed: the same seed and size always give the same arrays."""
    rng = np.random.Generator(np.random.PCG64(seed))
    while True:
        canvas = compose(rng, make_plan(rng, size), size)
        labels, count = tidy_labels(canvas.labels)
        if count:
            relight(rng, canvas)
            return Scene(expose(rng, canvas), labels, count)

"""Procedural clips with exact object masks in every frame, for training and judging tracking."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from vkrt.demo import shapes
from vkrt.demo.actors import Actor, Look, Shadow, make_sheet, paint_actor
from vkrt.demo.exposure import make_light, make_sensor
from vkrt.demo.motion import make_camera, make_motion
from vkrt.demo.scenes import Canvas, paint_background
from vkrt.demo.shapes import Shape

__all__ = ["Clip", "ClipSource", "choose_target", "make_clip"]

Rng = np.random.Generator
BACKDROP = 1.5  # sides of the picture: what the camera can see
PAN = 0.12
TARGET_SHARE = 0.008  # of the picture that a target covers on the first frame
TARGET_STAYS = 0.003  # of the picture that it covers on most frames
MOST = 0.6  # of the frames
WHOLE = 0.4  # of its largest visible area that a target shows on the first frame


@dataclass(frozen=True)
class Clip:
    """A procedural clip with the mask of each object in every frame.

    frames is (T, H, W, 3) uint8; labels is (T, H, W) uint8, 0 for the background and 1..count
    for the visible pixels of each object, the same label in every frame. An object that is
    hidden or outside the picture has no pixels there.
    """

    frames: np.ndarray
    labels: np.ndarray
    count: int

    def areas(self) -> np.ndarray:
        """Return the visible pixels of each object in each frame, (T, count) int64."""
        counted = [np.bincount(frame.ravel(), minlength=self.count + 1) for frame in self.labels]
        return np.stack(counted)[:, 1:]


@dataclass(frozen=True)
class Part:
    """What a clip casts: where and how large an object is at home, and whose twin it is, if any."""

    home: np.ndarray
    radius: float
    twin: int | None = None


def plan_parts(rng: Rng) -> list[Part]:
    """Lay out 1 to 9 objects: a few, a crowd of smaller ones, or one or two large ones."""
    kind = rng.random()
    if kind < 0.45:
        count, low, high = int(rng.integers(2, 6)), 0.1, 0.23
    elif kind < 0.75:
        count, low, high = int(rng.integers(5, 9)), 0.07, 0.14
    else:
        count, low, high = int(rng.integers(1, 3)), 0.2, 0.34
    radii = rng.uniform(low, high, count).tolist()
    if kind >= 0.75:
        radii += rng.uniform(0.07, 0.13, int(rng.integers(0, 3))).tolist()
    parts = [Part(rng.uniform(0.15, 0.85, 2), radius) for radius in radii]
    if rng.random() < 0.5:
        index = int(rng.integers(len(parts)))
        model = parts[index]
        home = np.clip(model.home + rng.uniform(-0.35, 0.35, 2), 0.1, 0.9)
        parts.append(Part(home, model.radius * rng.uniform(0.85, 1.15), index))
    return parts


def paint_backdrop(rng: Rng, size: int, grey: bool) -> Image.Image:
    """Paint what lies behind a clip of a size, larger than the picture: (S, S) RGB."""
    side = int(BACKDROP * size)
    canvas = Canvas(
        np.empty((3, side, side), np.float32), np.zeros((side, side), np.int16), grey=grey
    )
    blur = rng.uniform(0.5, 5) * size / 256 if rng.random() < 0.3 else 0.0
    paint_background(rng, canvas, smooth=bool(rng.random() < 0.25), blur=blur)
    pixels = (np.clip(canvas.pixels, 0, 1) * np.float32(255)).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def colours_of(picture: Image.Image, count: int) -> np.ndarray:
    """Return count**2 colours from a grid over a picture, (n, 3) float32 in 0..1."""
    small = picture.resize((count, count), Image.Resampling.NEAREST)
    return np.asarray(small, np.float32).reshape(-1, 3) / 255


def mean_colour(picture: Image.Image) -> np.ndarray:
    """Return the mean colour of the middle of a picture, (1, 3) float32 in 0..1."""
    side = picture.width
    middle = picture.crop((side // 4, side // 4, side - side // 4, side - side // 4))
    return np.asarray(middle.reduce(4), np.float32).mean((0, 1))[None] / 255


def make_shadow(rng: Rng, size: int) -> Shadow:
    """Draw a soft shadow."""
    x, y = (rng.normal(0, 0.012, 2) + np.array([0, 0.015])) * size
    return Shadow(
        (int(x), int(y)), 1 + int(rng.uniform(0.006, 0.02) * size), int(rng.uniform(40, 120))
    )


@dataclass
class Cast:
    """Makes the actors of a clip one by one, each to stand out from what is there already."""

    rng: Rng
    size: int
    grey: bool
    around: np.ndarray
    shadow: Shadow | None

    def make_shape(self, upright: bool) -> Shape:
        """Draw a shape of about radius 1."""
        return shapes.random_shape(self.rng, (0.0, 0.0), 1.0, float(upright))

    def invent(self, part: Part, label: int) -> tuple[Actor, Look, bool]:
        """Make an actor of its own kind."""
        upright = bool(self.rng.random() < 0.25)
        look = Look(int(self.rng.integers(2**62)), self.around, np.ones(3))
        return self.dress(part, label, self.make_shape(upright), look, upright), look, upright

    def copy(self, part: Part, label: int, model: tuple[Actor, Look, bool]) -> Actor:
        """Make a distractor: the pattern of another, often in a like shape or another tint."""
        actor, look, upright = model
        shape = actor.shape if self.rng.random() < 0.4 else self.make_shape(upright)
        tint = 1 + self.rng.choice([0.0, 0.12, 0.25]) * self.rng.uniform(-1, 1, 3)
        return self.dress(part, label, shape, Look(look.seed, look.around, tint), upright)

    def dress(self, part: Part, label: int, shape: Shape, look: Look, upright: bool) -> Actor:
        """Paint an actor and let it move."""
        sheet = make_sheet(shape, look, part.radius * self.size, self.grey)
        motion = make_motion(self.rng, part.home, part.radius, upright)
        return Actor(shape, sheet, motion, label, self.shadow)

    def bar(self) -> Actor:
        """Make a thin bar or branch that nearly stands still and is not asked for."""
        radius = self.rng.uniform(0.3, 0.6)
        turn = self.rng.uniform(0, np.pi)
        shape = shapes.place(shapes.bar(self.rng), (0.0, 0.0), turn, 1.0)
        look = Look(int(self.rng.integers(2**62)), self.around, np.ones(3))
        home = self.rng.uniform(0.15, 0.85, 2)
        motion = make_motion(self.rng, home, radius, upright=True, pace=0.15)
        # The texture of a bar need not be as fine as its length would make it.
        return Actor(shape, make_sheet(shape, look, 0.2 * self.size, self.grey), motion, 0)


def make_actors(rng: Rng, size: int, grey: bool, backdrop: Image.Image) -> list[Actor]:
    """Cast a clip: actors from back to front, labelled 1.. in another order than that of depth."""
    shadow = make_shadow(rng, size) if rng.random() < 0.35 else None
    around = colours_of(backdrop, 6)
    cast = Cast(rng, size, grey, around, shadow)
    models: list[tuple[Actor, Look, bool]] = []
    actors = []
    for label, part in enumerate(plan_parts(rng), start=1):
        if part.twin is None:
            models.append(cast.invent(part, label))
            actors.append(models[-1][0])
            # Eight times: a palette is judged by an eighth of the colours around.
            colour = mean_colour(actors[-1].sheet.picture)
            cast.around = np.concatenate([cast.around, colour.repeat(8, axis=0)])
        else:
            actors.append(cast.copy(part, label, models[part.twin]))
    order = rng.permutation(len(actors))
    bars = int(rng.integers(1, 4)) if rng.random() < 0.2 else 0
    cast.shadow = None
    return [actors[i] for i in order] + [cast.bar() for _ in range(bars)]


class ClipSource:
    """Draws any frame of the clip of a seed; all is painted once, then moved.

    The same seed and size always give the same arrays, whatever was drawn before.

    Attributes:
        size: side of the frames in pixels.
        count: objects, labelled 1..count; not all are visible in every frame.
    """

    def __init__(self, seed: int, size: int = 256) -> None:
        rng = np.random.Generator(np.random.PCG64(seed))
        grey = bool(rng.random() < 0.06)
        self.size = size
        self._camera = make_camera(rng, PAN)
        self._backdrop = paint_backdrop(rng, size, grey)
        self._actors = make_actors(rng, size, grey, self._backdrop)
        self._light = make_light(rng, size, grey)
        self._sensor = make_sensor(rng, size, grey)
        self.count = max(actor.label for actor in self._actors)

    def frame(self, time: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a frame (H, W, 3) uint8 and its labels (H, W) uint8; time counts from 0."""
        size, view = self.size, self._camera.matrix(time)
        spare = (self._backdrop.width - size) / 2
        world = np.linalg.inv(view)
        world[:2, 2] = world[:2, 2] * size + spare
        picture = self._backdrop.transform(
            (size, size),
            Image.Transform.AFFINE,
            world[:2].ravel().tolist(),
            Image.Resampling.BILINEAR,
        )
        labels = np.zeros((size, size), np.uint8)
        to_pixels = np.diag([size, size, 1.0]) @ view
        for actor in self._actors:
            paint_actor(picture, labels, actor, to_pixels @ actor.motion.matrix(time), time)
        return self._sensor.expose(self._light.shine(picture, time), time), labels


def make_clip(
    seed: int, size: int = 256, frames: int = 32, start: int = 0, stride: int = 1
) -> Clip:
    """Make the clip of a seed: frames start, start + stride and so on, `frames` of them."""
    source = ClipSource(seed, size)
    drawn = [source.frame(start + stride * index) for index in range(frames)]
    images, labels = zip(*drawn, strict=True)
    return Clip(np.stack(images), np.stack(labels), source.count)


def choose_target(clip: Clip, seed: int) -> int | None:
    """Return the label of an object to judge tracking by, or None where there is none.

    It is well visible on the first frame and large enough on most; in between it may leave.
    """
    areas, pixels = clip.areas(), clip.labels[0].size
    first = areas[0]
    clear = (first >= TARGET_SHARE * pixels) & (first >= WHOLE * areas.max(0))
    stays = (areas >= TARGET_STAYS * pixels).mean(0) >= MOST
    fit = np.flatnonzero(clear & stays) + 1
    return int(np.random.default_rng(seed).choice(fit)) if len(fit) else None

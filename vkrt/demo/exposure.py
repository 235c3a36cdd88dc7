"""How procedural clips are lit and photographed: slow light, noise, blur and JPEG."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from vkrt.demo.motion import Wave, make_wave
from vkrt.demo.textures import value_noise

__all__ = ["Light", "Sensor", "make_light", "make_sensor"]

Rng = np.random.Generator
SHADE_SIDE = 1.5  # sides of the picture
NOISE_SPARE = 32  # pixels by which the noise is larger than the picture


@dataclass(frozen=True)
class Light:
    """Light that changes gradually: gain (3) of the colours, lift, contrast, a drifting shade."""

    gain: Wave
    lift: Wave
    contrast: float
    shade: Image.Image | None
    drift: Wave
    grey: bool

    def shine(self, picture: Image.Image, time: float) -> Image.Image:
        """Return a picture in the light of a time."""
        levels = np.arange(256) - 127.5
        lifted = levels * self.contrast + 127.5 + 255 * self.lift.at(time)[0]
        tables = np.clip(np.exp(self.gain.at(time))[:, None] * lifted, 0, 255)
        picture = picture.point(tables.astype(int).ravel().tolist())
        if self.shade is not None:
            spare = (self.shade.width - picture.width) / 2
            x, y = (spare * (1 + self.drift.at(time))).astype(int).tolist()
            window = self.shade.crop((x, y, x + picture.width, y + picture.height))
            picture = ImageChops.multiply(picture, window)
        return picture.convert("L").convert("RGB") if self.grey else picture


def make_light(rng: Rng, size: int, grey: bool) -> Light:
    """Draw the light of a clip."""
    shade = None
    if rng.random() < 0.25:
        side = int(SHADE_SIDE * size)
        field = value_noise(rng, (side, side), rng.uniform(0.3, 0.8) * size, 1)
        field = 1 - rng.uniform(0.2, 0.5) * np.clip(field, 0, 1)
        grid = Image.fromarray((field * 255).astype(np.uint8))
        shade = Image.merge("RGB", [grid] * 3)
    return Light(
        gain=make_wave(rng, rng.uniform(0, 0.18), (40, 120), width=3),
        lift=make_wave(rng, rng.uniform(0, 0.07), (40, 120)),
        contrast=float(rng.uniform(0.8, 1.15)),
        shade=shade,
        drift=make_wave(rng, 0.9, (60, 160), width=2),
        grey=grey,
    )


@dataclass(frozen=True)
class Sensor:
    """What a camera adds to each frame: noise (pixels larger than a frame), blur, JPEG."""

    seed: int
    noise: np.ndarray | None
    blur: float
    quality: int | None

    def expose(self, picture: Image.Image, time: int) -> np.ndarray:
        """Photograph a picture: (H, W, 3) uint8. The noise of a frame depends on its time alone."""
        if self.noise is not None:
            rng = np.random.default_rng([self.seed, time])
            (x, y), side = rng.integers(0, NOISE_SPARE + 1, 2), picture.width
            step = int(rng.choice([-1, 1]))
            grain = self.noise[y : y + side, x : x + side][::step]
            noisy = np.clip(np.add(np.asarray(picture), grain, dtype=np.int16), 0, 255).astype(
                np.uint8
            )
            picture = Image.fromarray(noisy)
        if self.blur > 0:
            picture = picture.filter(ImageFilter.BoxBlur(self.blur))
        if self.quality is not None:
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=self.quality)
            picture = Image.open(buffer).convert("RGB")
        return np.array(picture)


def make_sensor(rng: Rng, size: int, grey: bool) -> Sensor:
    """Draw what a camera adds, like that of the scenes."""
    noise = None
    if rng.random() < 0.4:
        side = size + NOISE_SPARE
        grain = rng.standard_normal((side, side, 1 if grey else 3), np.float32)
        noise = (np.float32(255 * rng.uniform(0.005, 0.04)) * grain).round().astype(np.int16)
    return Sensor(
        seed=int(rng.integers(2**62)),
        noise=noise,
        blur=float(rng.uniform(0.3, 1.1)) if rng.random() < 0.25 else 0.0,
        quality=int(rng.integers(35, 96)) if rng.random() < 0.2 else None,
    )

"""The demo's clip: the objects of a held-out clip, followed from one click each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

import vkrt
from vkrt.demo.clips import make_clip
from vkrt.demo.sheet import Tile, draw_sheet
from vkrt.media.files import write_atomically
from vkrt.media.overlay import draw_overlay

__all__ = ["Reel", "draw_strip", "follow", "middle", "write_gif"]

# Below the first seed that training draws from (vkrt.demo.train).
HELD_OUT_SEED = 12
SIZE = 256
FRAMES = 32
MOST_OBJECTS = 3
LEAST_SHARE = 0.008  # of the picture that an object covers where it is clicked
STRIP = 6  # frames of the strip
FRAME_MS = 80


@dataclass(frozen=True)
class Reel:
    """Hold a clip and what was found of its objects.

    Attributes:
        frames: (T, H, W, 3) uint8.
        truth: (T, N, H, W) bool, where each object is visible.
        masks: (T, N, H, W) bool, what the model gave.
        points: (N, 2) x, y of the clicks on the first frame.
        seconds: of all frames but the first, which prepares what tracking needs.
    """

    frames: np.ndarray
    truth: np.ndarray
    masks: np.ndarray
    points: np.ndarray
    seconds: float

    def overlaps(self) -> np.ndarray:
        """Return the IoU of each frame and object, (T, N); 1 where both are empty."""
        common = (self.masks & self.truth).sum((2, 3))
        either = (self.masks | self.truth).sum((2, 3))
        return np.where(either > 0, common / np.maximum(either, 1), 1.0)

    @property
    def frames_a_second(self) -> float:
        """Return how many frames were tracked in a second."""
        return (len(self.frames) - 1) / self.seconds


def follow(sam: vkrt.Segmenter, seed: int = HELD_OUT_SEED) -> Reel:
    """Track the largest objects of a held-out clip from a click each on its first frame."""
    clip = make_clip(seed, SIZE, FRAMES)
    first = clip.areas()[0]
    largest = np.argsort(-first, kind="stable")[:MOST_OBJECTS]
    chosen = [int(i) + 1 for i in largest if first[i] >= LEAST_SHARE * clip.labels[0].size]
    truth = np.stack([clip.labels == label for label in chosen], axis=1)
    points = np.array([middle(mask) for mask in truth[0]])
    prompts = [
        vkrt.Prompt(obj=number, points=[point], labels=[1])
        for number, point in enumerate(points.tolist(), start=1)
    ]
    stream = sam.stream()
    masks = [stream.step(clip.frames[0], prompts).masks]
    start = time.perf_counter()
    masks += [stream.step(frame).masks for frame in clip.frames[1:]]
    return Reel(clip.frames, truth, np.stack(masks), points, time.perf_counter() - start)


def middle(mask: np.ndarray) -> tuple[int, int]:
    """Return x, y of the pixel of a mask that is nearest to the mean of all."""
    rows, columns = np.nonzero(mask)
    nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    return int(columns[nearest]), int(rows[nearest])


def write_gif(reel: Reel, path: Path) -> None:
    """Write the clip with its masks drawn over it, as a GIF that repeats."""
    drawn = [
        draw_overlay(frame, masks, points=reel.points if index == 0 else None)
        for index, (frame, masks) in enumerate(zip(reel.frames, reel.masks, strict=True))
    ]
    first, *others = [picture.quantize(256, Image.Quantize.MEDIANCUT) for picture in drawn]
    write_atomically(
        path,
        lambda file: first.save(
            file, "GIF", save_all=True, append_images=others, duration=FRAME_MS, loop=0
        ),
    )


def draw_strip(reel: Reel) -> Image.Image:
    """Return some frames of the clip side by side, each with the mean IoU of its objects."""
    shown: Sequence[int] = np.linspace(0, len(reel.frames) - 1, STRIP).round().astype(int).tolist()
    overlaps = reel.overlaps().mean(axis=1)
    row = [
        Tile(
            f"frame {index}, IoU {overlaps[index]:.2f}",
            reel.frames[index],
            mask=reel.masks[index],
            points=reel.points if index == 0 else None,
        )
        for index in shown
    ]
    return draw_sheet([row])

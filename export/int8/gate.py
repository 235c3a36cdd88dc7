"""The quality gate of an int8 export: its masks against those of fp32, on scenes and clips."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
from PIL import Image, ImageFilter

from vkrt.demo.clips import Clip, choose_target, make_clip
from vkrt.demo.scenes import Scene, make_scene
from vkrt.engines.prompt import Prompt
from vkrt.engines.sam2_image import Segmenter

__all__ = ["CLIPS", "LEAST_IOU", "SCENES", "Gate", "Verdict", "box_of", "mask_iou"]

LEAST_IOU = 0.98
SCENES = 24
CLIPS = 4
FRAMES = 7  # of a clip: the last one sees all memories that a bank of the usual size holds
# Neither the training of the demo model nor calibration nor the benchmarks use these.
FIRST_SEED = 800_000
SCENE_SIDE = 256
MOST_OBJECTS = 3
MIN_SHARE = 0.005  # of the picture that an object must cover visibly


@dataclass(frozen=True)
class Question:
    """Hold what is asked of one object: a click in its middle, and its box x0, y0, x1, y1."""

    click: tuple[int, int]
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Verdict:
    """Hold how far masks agree with those of fp32.

    Attributes:
        iou: mean over all masks on scenes.
        click, box: mean over those of each kind of prompt.
        track: mean over all frames of the clips, of an object that was clicked on in the first;
            None where the model can't track.
        masks, scenes, clips: how many there were.
        wanted: what `iou` and `track` must reach.
    """

    iou: float
    click: float
    box: float
    track: float | None
    masks: int
    scenes: int
    clips: int
    wanted: float = LEAST_IOU

    @property
    def worst(self) -> float:
        """Return the lower one of those two; NaN is lower than any."""
        return self.iou if self.track is None else float(np.minimum(self.iou, self.track))

    @property
    def passed(self) -> bool:
        """Tell whether the masks agree well enough."""
        return self.worst >= self.wanted

    def __str__(self) -> str:
        told = (
            f"mean mask IoU to fp32 {self.iou:.3f} (clicks {self.click:.3f}, boxes {self.box:.3f}, "
            f"{self.scenes} held-out scenes)"
        )
        if self.track is None:
            return told
        return f"{told} and {self.track:.3f} tracked ({self.clips} held-out clips)"


class Gate:
    """Keep the masks of a model in fp32, and hold others against them.

    Args:
        reference: the model in fp32.
        scenes: how many pictures to ask about.
        clips: in how many to track an object, where the model can.
    """

    def __init__(self, reference: Segmenter, scenes: int = SCENES, clips: int = CLIPS) -> None:
        self._pictures = [
            (scene.image, list(questions(scene)))
            for scene in (make_scene(FIRST_SEED + i, SCENE_SIDE) for i in range(scenes))
        ]
        self._clips = list(islice(tracked_clips(), clips if reference.can_track else 0))
        self._wanted = self._answers(reference)
        self._tracked = self._tracks(reference)

    def judge(self, sam: Segmenter) -> Verdict:
        """Return how far the masks that a user would get of `sam` are those of the reference."""
        ious = np.array(
            [
                [mask_iou(*pair) for pair in zip(found, wanted, strict=True)]
                for found, wanted in zip(self._answers(sam), self._wanted, strict=True)
            ]
        )
        click, box = map(float, ious.mean(axis=0))
        tracked = [mask_iou(*pair) for pair in zip(self._tracks(sam), self._tracked, strict=True)]
        return Verdict(
            iou=float(ious.mean()),
            click=click,
            box=box,
            track=float(np.mean(tracked)) if tracked else None,
            masks=ious.size,
            scenes=len(self._pictures),
            clips=len(self._clips),
        )

    def _answers(self, sam: Segmenter) -> list[list[np.ndarray]]:
        """Return for each object the mask of its click and that of its box, (H, W) bool."""
        answers = []
        for image, asked in self._pictures:
            embedding = sam.encode(image)
            for question in asked:
                clicked = embedding.predict(points=[question.click], multimask=True)
                boxed = embedding.predict(box=question.box, multimask=False)
                answers.append([clicked.masks[clicked.best], boxed.masks[boxed.best]])
        return answers

    def _tracks(self, sam: Segmenter) -> list[np.ndarray]:
        """Return the mask of each clip's object in each of its frames, (H, W) bool."""
        masks = []
        for clip, click in self._clips:
            stream = sam.stream()
            prompts = [Prompt(obj=1, points=[click], labels=[1])]
            for frame in clip.frames:
                masks.append(stream.step(frame, prompts=prompts).masks[0])
                prompts = []
        return masks


def tracked_clips() -> Iterator[tuple[Clip, tuple[int, int]]]:
    """Give clips with an object worth tracking, and where to click on it in the first frame."""
    for seed in count(FIRST_SEED):
        clip = make_clip(seed, SCENE_SIDE, FRAMES)
        target = choose_target(clip, seed)
        if target is not None:
            yield clip, middle(clip.labels[0] == target)


def questions(scene: Scene) -> Iterator[Question]:
    """Give what to ask of the largest objects of a scene."""
    areas = scene.areas()
    for index in np.argsort(-areas, kind="stable")[:MOST_OBJECTS]:
        # The largest in any case, so that every scene counts.
        if areas[index] >= MIN_SHARE * scene.labels.size or index == areas.argmax():
            mask = scene.labels == index + 1
            yield Question(middle(mask), box_of(mask))


def middle(mask: np.ndarray) -> tuple[int, int]:
    """Return x, y of a pixel that stays longest as a mask (H, W) bool is worn from its edges."""
    left = mask
    picture = Image.fromarray(np.pad(mask, 1).astype(np.uint8))
    while True:
        picture = picture.filter(ImageFilter.MinFilter(3))
        worn = np.asarray(picture)[1:-1, 1:-1].astype(bool)
        if not worn.any():
            break
        left = worn
    y, x = np.argwhere(left)[np.count_nonzero(left) // 2]
    return int(x), int(y)


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the tight box x0, y0, x1, y1 of a mask that is not empty, the far edges outside."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def mask_iou(one: np.ndarray, other: np.ndarray) -> float:
    """Return the intersection of two masks over their union; 1 if both are empty."""
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 1.0

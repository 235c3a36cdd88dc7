"""The gate of int8: masks on held-out scenes against those of fp32."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vkrt.demo.scenes import make_scene
from vkrt.engines.prompt import Prompt
from vkrt.export.int8.gate import Gate, Verdict, box_of, mask_iou, middle, questions


def test_the_middle_of_a_mask() -> None:
    mask = np.zeros((20, 30), bool)
    mask[2:9, 4:11] = True
    mask[2:18, 20:22] = True
    assert middle(mask) == (7, 5)
    assert middle(np.ones((5, 5), bool)) == (2, 2)
    one = np.zeros((4, 4), bool)
    one[0, 3] = True
    assert middle(one) == (3, 0)


def test_box_is_tight() -> None:
    mask = np.zeros((20, 30), bool)
    mask[4:9, 7] = mask[6, 7:12] = True
    x0, y0, x1, y1 = box_of(mask)
    assert (x0, y0, x1, y1) == (7, 4, 12, 9)
    assert np.count_nonzero(mask[y0:y1, x0:x1]) == np.count_nonzero(mask)
    assert box_of(np.ones((3, 5), bool)) == (0, 0, 5, 3)


def test_mask_iou() -> None:
    mask = np.array([True, True, False, False])
    assert mask_iou(mask, mask) == 1 and mask_iou(mask, ~mask) == 0
    assert mask_iou(mask, np.array([True, False, False, True])) == pytest.approx(1 / 3)
    assert mask_iou(mask, mask | True) == 0.5
    assert mask_iou(mask & False, mask & False) == 1


def test_every_scene_is_asked_about() -> None:
    for seed in range(5):
        scene = make_scene(seed, 96)
        asked = list(questions(scene))
        assert 1 <= len(asked) <= 3
        for question in asked:
            (x, y), (x0, y0, x1, y1) = question.click, question.box
            label = scene.labels[y, x]
            assert label and x0 <= x < x1 and y0 <= y < y1
            outside = scene.labels.copy()
            outside[y0:y1, x0:x1] = 0
            assert not (outside == label).any()


def test_masks_that_are_no_numbers_do_not_pass() -> None:
    nan = float("nan")
    assert not Verdict(nan, nan, nan, 1.0, 1, 1, 1).passed
    assert not Verdict(1.0, 1.0, 1.0, nan, 1, 1, 1).passed


class Bright:
    """Answer every prompt with the bright part of the picture, the box with the right half of it.

    Args:
        right: where that half begins, as a share of the width.
        can_track: whether it has a stream.
    """

    def __init__(self, right: float = 0.5, can_track: bool = True) -> None:
        self.right, self.can_track = right, can_track

    def encode(self, photo: np.ndarray) -> Bright:
        self.bright = photo.mean(axis=2) > 100
        return self

    def predict(self, points: object = None, box: object = None, multimask: bool = True) -> Any:
        mask = self.bright.copy()
        if box is not None:
            mask[:, : int(self.right * mask.shape[1])] = False
        wrong = np.zeros_like(mask)
        return SimpleNamespace(masks=np.stack([wrong, mask]), best=1)

    def stream(self) -> Any:
        """Track whatever is bright in the right half, once there was a click."""
        asked: list[Prompt] = []

        def step(frame: np.ndarray, prompts: list[Prompt]) -> Any:
            asked.extend(prompts)
            assert len(asked) == 1 and asked[0].points is not None
            mask = frame.mean(axis=2) > 100
            mask[:, : int(self.right * mask.shape[1])] = False
            return SimpleNamespace(masks=mask[None])

        return SimpleNamespace(step=step)


def test_masks_are_held_against_those_of_the_reference() -> None:
    gate = Gate(Bright(), scenes=2, clips=2)
    same = gate.judge(Bright())
    assert (same.iou, same.click, same.box, same.track, same.passed) == (1, 1, 1, 1, True)
    assert (same.scenes, same.clips) == (2, 2)
    nothing = gate.judge(Bright(right=1.0))
    assert (nothing.iou, nothing.click, nothing.box) == (0.5, 1.0, 0.0)
    assert not nothing.passed and nothing.masks == same.masks >= 4
    assert nothing.worst == nothing.track < 0.1
    assert 0 < gate.judge(Bright(right=0.6)).box < 1
    assert str(nothing).startswith("mean mask IoU to fp32 0.500 (clicks 1.000, boxes 0.000, 2 ")


def test_a_model_that_can_not_track_is_judged_by_pictures_alone() -> None:
    gate = Gate(Bright(can_track=False), scenes=1, clips=2)
    found = gate.judge(Bright(can_track=False))
    assert (found.track, found.clips, found.worst, found.passed) == (None, 0, 1.0, True)
    assert "tracked" not in str(found)

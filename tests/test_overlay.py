"""The overlay draws what it is told, where it is told."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vkrt.media.overlay import COLOURS, NEGATIVE, POSITIVE, RIM, draw_overlay

GREY = np.full((100, 160, 3), 120, np.uint8)


def square(top: int, left: int, side: int) -> np.ndarray:
    """Return (100, 160) bool with one square."""
    mask = np.zeros((100, 160), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_nothing_to_draw_leaves_the_photo() -> None:
    got = draw_overlay(GREY, np.zeros((0, 100, 160), bool))
    assert isinstance(got, Image.Image) and got.mode == "RGB" and got.size == (160, 100)
    assert np.array_equal(np.asarray(got), GREY)


def test_masks_are_tinted_and_outlined() -> None:
    first, second = square(10, 10, 30), square(50, 90, 30)
    before = GREY.copy()
    got = np.asarray(draw_overlay(GREY, np.stack([first, second])))
    assert np.array_equal(GREY, before)
    for mask, colour, inside, edge in (
        (first, COLOURS[0], (25, 25), (10, 25)),
        (second, COLOURS[1], (65, 105), (65, 90)),
    ):
        tint = np.rint((120 + np.array(colour)) / 2)
        assert np.abs(got[inside].astype(int) - tint).max() <= 1
        assert tuple(got[edge]) == colour
        assert (got[mask] != 120).any(axis=-1).all()
    assert np.array_equal(got[~(first | second)], GREY[~(first | second)])


def test_one_mask_without_a_batch() -> None:
    mask = square(10, 10, 30)
    assert draw_overlay(GREY, mask).tobytes() == draw_overlay(GREY, mask[None]).tobytes()


def test_border_of_the_photo_is_no_edge() -> None:
    got = np.asarray(draw_overlay(GREY, np.ones((1, 100, 160), bool)))
    assert len(np.unique(got.reshape(-1, 3), axis=0)) == 1
    assert tuple(got[0, 0]) != COLOURS[0]


def test_points_have_their_colour_and_a_rim() -> None:
    got = np.asarray(draw_overlay(GREY, square(0, 0, 0), [[40, 30], [120, 70]], [1, 0]))
    assert tuple(got[30, 40]) == POSITIVE and tuple(got[70, 120]) == NEGATIVE
    rim = (got == RIM).all(axis=-1)
    assert rim[20:40, 30:50].any() and rim[60:80, 110:130].any()
    assert not rim[:, 60:100].any()
    unlabelled = np.asarray(draw_overlay(GREY, square(0, 0, 0), [[40, 30]]))
    assert tuple(unlabelled[30, 40]) == POSITIVE


def test_boxes() -> None:
    for boxes in ([20, 30, 90, 80], [[20, 30, 90, 80]], [90, 80, 20, 30]):
        got = np.asarray(draw_overlay(GREY, square(0, 0, 0), boxes=boxes))
        assert tuple(got[30, 50]) == POSITIVE and tuple(got[50, 90]) == POSITIVE
        assert tuple(got[55, 55]) == (120, 120, 120)


def test_lines_scale_with_the_photo() -> None:
    large = np.full((1200, 1600, 3), 120, np.uint8)
    got = np.asarray(draw_overlay(large, np.zeros((1, 1200, 1600), bool), [[800, 600]]))
    assert (got == POSITIVE).all(axis=-1).sum() > 500


def test_prompts_at_and_beyond_the_border() -> None:
    got = draw_overlay(GREY, square(0, 0, 5), [[0, 0], [159, 99]], [1, 0], [-5, -5, 400, 300])
    assert got.size == (160, 100)


def test_labels_must_match() -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        draw_overlay(GREY, square(0, 0, 5), [[1, 1], [2, 2]], [1])


def test_a_photo_of_one_pixel() -> None:
    photo = np.zeros((1, 1, 3), np.uint8)
    got = np.asarray(draw_overlay(photo, np.ones((1, 1, 1), bool)))
    assert got.shape == (1, 1, 3) and got.any()

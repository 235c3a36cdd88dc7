"""Prompts: what is accepted, what it becomes, and one clear line for what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vkrt.errors import PromptError
from vkrt.media.prompts import prepare

SIZE = (60, 80)
SIDE = 128


def test_click_is_scaled_and_padded() -> None:
    batch = prepare(SIZE, SIDE, points=[[40, 30]], labels=[1])
    assert not batch.is_batch
    np.testing.assert_allclose(batch.points, [[[64, 64], [0, 0]]])
    np.testing.assert_array_equal(batch.labels, [[1, -1]])
    assert batch.masks is None
    assert (batch.points.dtype, batch.labels.dtype) == (np.float32, np.int32)


def test_box_comes_before_points() -> None:
    batch = prepare(SIZE, SIDE, points=[[40, 30]], labels=[0], box=[0, 0, 80, 60])
    np.testing.assert_array_equal(batch.labels, [[2, 3, 0, -1]])
    np.testing.assert_allclose(batch.points[0, :2], [[0, 0], [128, 128]])


def test_mask_alone_has_no_points() -> None:
    batch = prepare(SIZE, SIDE, mask=np.ones((1, 32, 32)))
    assert batch.points.shape == (1, 0, 2)
    assert batch.masks is not None
    assert batch.masks.shape == (1, 1, 32, 32)


def test_labels_default_to_foreground() -> None:
    batch = prepare(SIZE, SIDE, points=[[1, 1], [2, 2]])
    np.testing.assert_array_equal(batch.labels, [[1, 1, -1]])


def test_boxes_are_cut_to_the_photo() -> None:
    batch = prepare(SIZE, SIDE, box=[-10, 10, 100, 50])
    np.testing.assert_allclose(batch.points[0, :2, 0], [0, 128])


@given(
    count=st.integers(1, 5),
    points=st.integers(1, 4),
    with_box=st.booleans(),
    with_mask=st.booleans(),
    data=st.data(),
)
def test_any_batch_has_one_row_per_prompt(
    count: int, points: int, with_box: bool, with_mask: bool, data: st.DataObject
) -> None:
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    batch = prepare(
        SIZE,
        SIDE,
        points=rng.uniform(0, 60, (count, points, 2)),
        labels=rng.integers(0, 2, (count, points)),
        box=np.tile([1, 2, 30, 40], (count, 1)) if with_box else None,
        mask=rng.standard_normal((count, 32, 32)) if with_mask else None,
    )
    width = points + 1 + 2 * with_box
    assert batch.is_batch
    assert batch.points.shape == (count, width, 2)
    assert batch.labels.shape == (count, width)
    assert (batch.masks is not None) == with_mask
    assert batch.masks is None or batch.masks.shape == (count, 1, 32, 32)
    assert (batch.labels[:, -1] == -1).all()


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ({}, "no prompt"),
        ({"points": [[81, 10]]}, r"point \(81, 10\) is outside the photo, which is 80 wide"),
        ({"points": [[10, -1]]}, "outside"),
        ({"points": [[float("nan"), 10]]}, "not a finite number"),
        ({"points": [["a", "b"]]}, "must be numbers"),
        ({"points": [[1, 2], [3]]}, "regular shape"),
        ({"points": [[1, 2, 3]]}, r"shape \(P, 2\)"),
        ({"points": []}, r"shape \(P, 2\)"),
        ({"points": [[1, 2]], "labels": [1, 0]}, "one per point"),
        ({"points": [[1, 2]], "labels": [7]}, "labels must be 1"),
        ({"labels": [1]}, "without points"),
        ({"box": [5, 5, 5, 9]}, "x1 > x0"),
        ({"box": [1, 2, 3]}, "x0, y0, x1, y1"),
        ({"box": [100, 100, 120, 120]}, "outside the photo"),
        ({"mask": np.zeros((16, 16))}, r"\(32, 32\)"),
        ({"points": np.ones((2, 1, 2)), "box": [[1, 1, 9, 9]] * 3}, "same number of prompts"),
    ],
)
def test_refused_in_one_line(prompts: dict[str, object], words: str) -> None:
    with pytest.raises(PromptError, match=words) as caught:
        prepare(SIZE, SIDE, **prompts)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)

"""Prompts: what is accepted, what it becomes, and one clear line for what is refused."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vkrt.errors import PromptError
from vkrt.media.masks import mask_to_logits
from vkrt.media.prompts import PromptBatch, prepare

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


NOTHING = [
    {"box": np.zeros((0, 4))},
    {"box": []},
    {"points": np.zeros((0, 1, 2)), "labels": np.zeros((0, 1))},
    {"points": np.zeros((0, 1, 2))},
    {"points": [], "labels": [], "box": []},
    {"mask": np.zeros((0, 32, 32))},
]


@pytest.mark.parametrize("prompts", NOTHING)
def test_nothing_found_is_a_batch_of_none(prompts: dict[str, Any]) -> None:
    batch = prepare(SIZE, SIDE, **prompts)
    assert batch.is_batch
    assert len(batch.points) == len(batch.labels) == 0
    assert batch.points.shape[2] == 2


@pytest.mark.parametrize(
    "empty",
    [
        {"points": [], "labels": []},
        {"points": np.zeros((0, 2)), "labels": np.zeros(0)},
        {"points": np.zeros((1, 0, 2))},
        {"points": np.zeros((0, 1, 2))},
        {"labels": []},
        {"mask": []},
    ],
)
def test_empty_lists_beside_a_box_say_nothing(empty: dict[str, Any]) -> None:
    batch = prepare(SIZE, SIDE, box=[1, 2, 30, 40], **empty)
    wanted = prepare(SIZE, SIDE, box=[1, 2, 30, 40])
    assert_same(batch, wanted)
    assert prepare(SIZE, SIDE, points=[[1, 2]], box=[]).points.shape == (1, 2, 2)


def assert_same(found: PromptBatch, wanted: PromptBatch) -> None:
    np.testing.assert_array_equal(found.points, wanted.points)
    np.testing.assert_array_equal(found.labels, wanted.labels)
    assert found.is_batch == wanted.is_batch
    if wanted.masks is None:
        assert found.masks is None
    else:
        np.testing.assert_array_equal(found.masks, wanted.masks)


def test_tensors_of_every_dtype_are_numbers() -> None:
    torch = pytest.importorskip("torch")
    box = torch.tensor([4.0, 8, 32, 40])
    wanted = prepare(SIZE, SIDE, box=[4, 8, 32, 40])
    forms = [box.to(getattr(torch, name)) for name in DTYPES]
    for form in [*forms, box.clone().requires_grad_(), list(box), list(box.requires_grad_())]:
        assert_same(prepare(SIZE, SIDE, box=form), wanted)
    two = prepare(SIZE, SIDE, box=[[4, 8, 32, 40]] * 2)
    for form in ([box, box], (box, box.bfloat16()), [list(box), list(box)]):
        assert_same(prepare(SIZE, SIDE, box=form), two)


DTYPES = ("float64", "float32", "bfloat16", "float16", "float8_e4m3fn", "int64", "uint8")


def test_labels_2_and_3_are_the_corners_of_a_box() -> None:
    wanted = prepare(SIZE, SIDE, box=[-4, 8, 32, 40])
    assert_same(prepare(SIZE, SIDE, points=[[-4, 8], [32, 40]], labels=[2, 3]), wanted)
    mixed = prepare(SIZE, SIDE, points=[[9, 9], [32, 40], [4, 8]], labels=[True, 3, 2])
    np.testing.assert_array_equal(mixed.labels, [[1, 3, 2, -1]])
    ragged = prepare(
        SIZE, SIDE, points=[[[4, 8], [32, 40]], [[9, 9], [0, 0]]], labels=[[2, 3], [1, -1]]
    )
    np.testing.assert_array_equal(ragged.labels, [[2, 3, -1], [1, -1, -1]])


def disc() -> np.ndarray:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return (x - 40) ** 2 + (y - 30) ** 2 < 15**2


def test_a_mask_of_the_photos_size_becomes_logits_of_its_coverage() -> None:
    inside = disc()
    wanted = mask_to_logits(inside, 32)
    assert (wanted.min(), wanted.max()) == (-10, 10)
    grey, share = inside.astype(np.uint8), inside.astype(np.float32)
    forms = [inside, grey, grey * 255, grey * 200, share, share * 0.7, share * 9 - 3, inside[None]]
    for form in [*forms, inside.tolist(), grey.astype(np.int64)]:
        batch = prepare(SIZE, SIDE, mask=form)
        np.testing.assert_array_equal(batch.masks, wanted[None])
        assert not batch.is_batch
    other = ~inside
    batch = prepare(SIZE, SIDE, mask=np.stack((inside, other))[:, None])
    np.testing.assert_array_equal(batch.masks, np.stack((wanted, mask_to_logits(other, 32))))
    assert batch.is_batch


def test_at_low_resolution_a_bool_mask_is_a_mask_and_floats_are_logits() -> None:
    small = disc()[10:42, 20:52]
    for form in (small, small.astype(np.uint8) * 255):
        batch = prepare(SIZE, SIDE, mask=form)
        np.testing.assert_array_equal(batch.masks, np.where(small, 10, -10)[None, None])
    logits = small.astype(np.float32)
    np.testing.assert_array_equal(prepare(SIZE, SIDE, mask=logits).masks, logits[None, None])


def test_where_prompts_are_not_checked_upstreams_answers_have_their_inputs() -> None:
    loose = functools.partial(prepare, SIZE, SIDE, strict=False)
    np.testing.assert_allclose(loose(box=[40, 30, 20, 15]).points[0, :2], [[64, 64], [32, 32]])
    assert loose(box=[5, 5, 5, 9]).labels.tolist() == [[2, 3, -1]]
    np.testing.assert_allclose(loose(points=[[-40, 90]]).points[0, 0], [-64, 192])
    assert loose(box=np.ones((1, 3, 4))).points.shape == (3, 3, 2)
    for nothing in ({}, {"points": [], "labels": []}):
        batch = loose(**nothing)
        assert (batch.points.shape, batch.masks, batch.is_batch) == ((1, 0, 2), None, False)
    assert len(loose(box=np.zeros((0, 4))).points) == 0


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
        ({"points": []}, "no prompt"),
        ({"points": np.zeros((0, 2)), "labels": []}, "no prompt"),
        ({"points": np.ones((2, 1, 2)), "box": np.zeros((0, 4))}, "same number of prompts"),
        ({"points": [[1, 2]], "labels": []}, "one per point"),
        ({"points": [[1, 2]], "labels": [1, 0]}, "one per point"),
        ({"points": [[1, 2]], "labels": [7]}, "labels must be 1"),
        ({"points": [[1, 2], [3, 4]], "labels": [1, 7]}, "label 2 of 2 is 7"),
        ({"points": [[1, 2], [30, 40]], "labels": [2, 1]}, "give one of each"),
        ({"points": [[1, 2], [30, 40]], "labels": [2, 3], "box": [1, 2, 3, 4]}, "not both"),
        (
            {"points": [[30, 2], [3, 40]], "labels": [2, 3]},
            r"box \(30, 2, 3, 40\) must have",
        ),
        ({"points": [[["1", "2"]]]}, "must be numbers"),
        ({"points": [[10**400, 1]]}, "must be numbers"),
        ({"points": [[[1, 2], [3, 4]], [[1, 2], [99, 4]]]}, "point 2 of 2 of prompt 2 of 2"),
        ({"box": [[1, 2, 30, 40], [9, 9, 3, 3], [1, 2, 3, 4]]}, r"box 2 of 3 \(9, 9, 3, 3\) must"),
        ({"box": [[1, 2, 3, 4], [90, 9, 99, 19]]}, r"box 2 of 2 \(90, 9, 99, 19\) is outside"),
        ({"box": [[1, 2, 3, 4], [1, 2, 3, np.inf]]}, "box 2 of 2 has a value that is not a finite"),
        ({"box": [[1, 2, 3, 4], [1, 2, 3]]}, "box 2 of 2 must be numbers in a regular shape"),
        ({"mask": np.full(SIZE, np.nan)}, "mask has a value that is not a finite"),
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

"""Boxes of masks, and thinning out boxes, against plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vkrt.errors import ImageError, PromptError
from vkrt.media import boxes as module
from vkrt.media import fallback, native
from vkrt.media.boxes import measure, nms

OPERATIONS = [fallback, native.operations] if native.available() else [fallback]
any_input = settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(params=OPERATIONS, ids=lambda part: part.__name__)
def operations(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test with the stand-ins, and with the C++ part where there is one."""
    monkeypatch.setattr(module, "operations", request.param)


def reference_box(mask: np.ndarray) -> list[int]:
    """Return the first and last column and row of a mask, pixel by pixel."""
    places = [(x, y) for y, row in enumerate(mask) for x, pixel in enumerate(row) if pixel]
    if not places:
        return [0, 0, 0, 0]
    columns, rows = zip(*places, strict=True)
    return [min(columns), min(rows), max(columns), max(rows)]


@pytest.mark.usefixtures("operations")
@any_input
@given(st.integers(1, 3), st.integers(1, 70), st.integers(1, 80), st.integers(0, 2**32 - 1))
def test_measure_of_any_shape(count: int, height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = rng.random((count, height, width)) < rng.choice([0, 0.001, 0.02, 0.5, 1])
    areas, boxes = measure(masks, threads=1 + seed % 3)
    assert areas.dtype == np.int64 and areas.tolist() == masks.sum(axis=(1, 2)).tolist()
    assert boxes.dtype == np.float32 and boxes.tolist() == [reference_box(mask) for mask in masks]


@pytest.mark.usefixtures("operations")
def test_measure_of_nothing_and_of_wrong_things() -> None:
    areas, boxes = measure(np.zeros((0, 4, 5), bool))
    assert areas.shape == (0,) and boxes.shape == (0, 4)
    corner = np.zeros((1, 63, 123), np.uint8)
    corner[0, 62, 122] = 7
    assert measure(corner)[1].tolist() == [[122, 62, 122, 62]]
    with pytest.raises(ImageError, match="shape"):
        measure(np.zeros((4, 5), bool))
    with pytest.raises(ImageError, match="can't be 5x0"):
        measure(np.zeros((1, 0, 5), bool))


# --- thinning out


def iou(a: np.ndarray, b: np.ndarray) -> np.float32:
    """Return the IoU of two boxes, step by step in float32; 0 where both are without area."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), np.float32(0))
    height = max(min(a[3], b[3]) - max(a[1], b[1]), np.float32(0))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    union = areas[0] + areas[1] - width * height
    return width * height / union if union else np.float32(0)


def reference_nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    """Return the places to keep, box by box."""
    kept: list[int] = []
    for place in sorted(range(len(scores)), key=lambda i: (-float(scores[i]), i)):
        if all(iou(boxes[place], boxes[better]) <= np.float32(threshold) for better in kept):
            kept.append(place)
    return kept


@st.composite
def many_boxes(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Give boxes and scores of which many are equal, overlap or have no area."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, side = draw(st.integers(0, 70)), draw(st.sampled_from([3, 12, 200]))
    corners = rng.integers(0, side, (count, 2, 2)) + draw(st.sampled_from([0, 0.3]))
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)
    scores = rng.integers(0, draw(st.sampled_from([1, 5, 10**6])), count).astype(np.float32)
    return boxes, scores / 7


@pytest.mark.usefixtures("operations")
@any_input
@given(many_boxes(), st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 0.7, 1.0]))
def test_any_boxes(drawn: tuple[np.ndarray, np.ndarray], threshold: float) -> None:
    boxes, scores = drawn
    got = nms(boxes, scores, threshold)
    assert got.dtype == np.int64
    assert got.tolist() == reference_nms(boxes, scores, threshold)


@pytest.mark.usefixtures("operations")
def test_overlap_at_the_threshold_stays() -> None:
    boxes = np.array([[0, 0, 2, 2], [0, 0, 2, 1], [4, 4, 5, 5]], np.float32)  # IoU 0.5
    assert nms(boxes, np.array([0.9, 0.8, 0.95]), 0.5).tolist() == [2, 0, 1]
    assert nms(boxes, np.array([0.9, 0.8, 0.95]), 0.499).tolist() == [2, 0]


@pytest.mark.usefixtures("operations")
def test_a_dropped_box_drops_none() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 4, 10, 14], [0, 8, 10, 18]], np.float32)
    assert nms(boxes, np.array([3, 2, 1]), 0.3).tolist() == [0, 2]


@pytest.mark.usefixtures("operations")
def test_of_equal_scores_the_first_is_kept() -> None:
    boxes = np.tile(np.array([[1, 1, 9, 9]], np.float32), (300, 1))
    assert nms(boxes, np.full(300, 0.5), 0.5).tolist() == [0]
    assert nms(boxes, np.full(300, 0.5), 1.0).tolist() == list(range(300))
    assert nms(np.empty((0, 4)), np.empty(0), 0.5).tolist() == []


BOX = [[0.0, 0.0, 2.0, 2.0]]


@pytest.mark.usefixtures("operations")
@pytest.mark.parametrize(
    ("boxes", "scores", "threshold", "message"),
    [
        (BOX, [np.nan], 0.5, "scores has a value that is not a finite number"),
        (BOX, [np.inf], 0.5, "scores has a value that is not a finite number"),
        ([[0, 0, 1e300, 1]], [1.0], 0.5, "boxes has a value that is not a finite number"),
        (BOX, [1.0, 2.0], 0.5, r"boxes must be \(N, 4\)"),
        ([[1, 2, 3]], [1.0], 0.5, r"boxes must be \(N, 4\)"),
        (BOX[0], [1.0], 0.5, r"numbers in 2 dimension\(s\)"),
        (BOX, 1.0, 0.5, r"numbers in 1 dimension\(s\)"),
        ([["a"] * 4], [1.0], 0.5, "must be numbers"),
        ([[2, 0, 1, 1]], [1.0], 0.5, "x0 <= x1"),
        (BOX, [1.0], float("nan"), "IoU threshold can't be nan"),
        (BOX, [1.0], -0.1, "IoU threshold can't be -0.1"),
    ],
)
def test_bad_boxes(boxes: Any, scores: Any, threshold: float, message: str) -> None:
    with pytest.raises(PromptError, match=message) as caught:
        nms(boxes, scores, threshold)
    assert "\n" not in str(caught.value)

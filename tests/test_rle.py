"""COCO run lengths: against the format's definition and what the public tools write."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vkrt.errors import ImageError
from vkrt.media import fallback, native, rle
from vkrt.media.masks import binarize
from vkrt.media.rle import Rle, decode, encode, encode_logits

OPERATIONS = [fallback, native.operations] if native.available() else [fallback]
SHAPES = [(1, 1), (1, 7), (9, 1), (63, 123), (31, 33), (64, 64), (8, 1000)]
any_shape = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(params=OPERATIONS, ids=lambda module: module.__name__)
def operations(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the test with the stand-ins, and with the C++ part where there is one."""
    monkeypatch.setattr(rle, "operations", request.param)
    return request.param


def reference_runs(mask: np.ndarray) -> list[int]:
    """Return the runs of a mask, pixel by pixel."""
    runs, current = [0], False
    for pixel in mask.T.ravel().tolist():
        if pixel != current:
            runs.append(0)
            current = pixel
        runs[-1] += 1
    return runs


def reference_text(runs: list[int]) -> str:
    """Return COCO's string of runs, number by number."""
    text = ""
    for place, run in enumerate(runs):
        number = run - (runs[place - 2] if place > 2 else 0)
        # The fewest groups of five bits in which the number is its own two's complement.
        groups = 1
        while not -(2 ** (5 * groups - 1)) <= number < 2 ** (5 * groups - 1):
            groups += 1
        for group in range(groups):
            bits = number >> 5 * group & 31
            text += chr(48 + bits + (32 if group < groups - 1 else 0))
    return text


def random_mask(height: int, width: int, seed: int) -> np.ndarray:
    """Return a mask of blobs or of noise, sometimes empty or full."""
    rng = np.random.default_rng([height, width, seed])
    fine = rng.random((height, width))
    coarse = np.kron(rng.random((-(-height // 8), -(-width // 8))), np.ones((8, 8)))
    kind = seed % 4
    values = (fine, coarse[:height, :width], np.zeros(fine.shape), np.ones(fine.shape))[kind]
    return values > rng.uniform(0.2, 0.8)


# --- masks and runs


@pytest.mark.usefixtures("operations")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(4))
def test_runs_are_those_of_the_pixels(shape: tuple[int, int], seed: int) -> None:
    masks = np.stack([random_mask(*shape, seed + 4 * i) for i in range(3)])
    got = encode(masks)
    assert [each.counts.tolist() for each in got] == [reference_runs(mask) for mask in masks]
    assert all(each.counts.dtype == np.uint32 for each in got)
    assert [each.area for each in got] == masks.sum(axis=(1, 2)).tolist()
    back = decode(got)
    assert back.dtype == bool and np.array_equal(back, masks)


@pytest.mark.usefixtures("operations")
@any_shape
@given(st.integers(1, 70), st.integers(1, 90), st.integers(0, 99), st.integers(1, 4))
def test_any_shape(height: int, width: int, seed: int, threads: int) -> None:
    mask = random_mask(height, width, seed)
    got = encode(mask[None], threads)
    assert got[0].counts.tolist() == reference_runs(mask)
    assert np.array_equal(decode(got, threads)[0], mask)


@pytest.mark.usefixtures("operations")
def test_small_masks_by_hand() -> None:
    assert encode(np.ones((1, 2, 3)))[0].counts.tolist() == [0, 6]
    assert encode(np.zeros((1, 2, 3)))[0].counts.tolist() == [6]
    mask = np.array([[[0, 1, 0], [1, 1, 0]]])  # columns: 0 1, 1 1, 0 0
    assert encode(mask)[0].counts.tolist() == [1, 3, 2]
    # The bottom of one column and the top of the next are one run.
    assert decode([Rle(2, 3, np.array([1, 3, 2], np.uint32))]).astype(int).tolist() == mask.tolist()
    # Runs of length 0 are allowed inside.
    odd = Rle(2, 3, np.array([1, 1, 0, 2, 0, 0, 2], np.uint32))
    assert np.array_equal(decode([odd]), mask)


@pytest.mark.usefixtures("operations")
def test_layouts_dtypes_and_none_at_all() -> None:
    mask = random_mask(20, 30, 1)
    wanted = reference_runs(mask)
    for form in (np.asfortranarray(mask), mask.astype(np.uint8) * 255, mask.astype(float)):
        assert encode(form[None])[0].counts.tolist() == wanted
    assert encode(mask[None, ::-1, ::2])[0].counts.tolist() == reference_runs(mask[::-1, ::2])
    assert encode(np.zeros((0, 20, 30), bool)) == []
    none = encode_logits(np.zeros((0, 8, 8), np.float32), 20, 30)
    assert none.rles == [] and none.boxes.shape == (0, 4) and len(none.areas) == 0


# --- from logits


def check_logits(logits: np.ndarray, height: int, width: int, *cut: float) -> None:
    """Assert that encoding logits is binarizing and encoding."""
    wanted = binarize(logits, height, width, *cut)
    got = encode_logits(logits, height, width, *cut)
    assert [each.counts.tolist() for each in got.rles] == [
        reference_runs(mask) for mask in wanted.masks
    ]
    assert all((each.height, each.width) == (height, width) for each in got.rles)
    for mine, other in zip(got[1:], wanted[1:], strict=True):
        assert mine.dtype == other.dtype and np.array_equal(mine, other)


@pytest.mark.usefixtures("operations")
@any_shape
@given(
    *(st.integers(1, n) for n in (3, 30, 40, 150, 190)),
    st.integers(0, 99),
    st.sampled_from([(0.0, 1.0), (0.7, 0.25), (-2.0, 0.0)]),
)
def test_logits_of_any_shape(
    n: int, h: int, w: int, height: int, width: int, seed: int, cut: tuple[float, float]
) -> None:
    rng = np.random.default_rng(seed)
    smooth = rng.normal(0, 3, (n, 1, 1)) + np.cumsum(rng.normal(0, 1, (n, h, w)), axis=1 + seed % 2)
    check_logits(smooth.astype(np.float32), height, width, *cut)


@pytest.mark.usefixtures("operations")
def test_logits_of_empty_and_full_masks() -> None:
    levels = np.array([-9, 9, 0, -0.5, 0.5], np.float32)
    check_logits(np.broadcast_to(levels[:, None, None], (5, 6, 7)).copy(), 63, 123)


@pytest.mark.skipif(
    not native.available() or not sys.platform.startswith("linux"),
    reason="the stand-in makes the masks; ru_maxrss is in KiB on Linux only",
)
def test_logits_need_no_picture() -> None:
    import resource

    logits = np.full((1, 64, 64), -5, np.float32)
    logits[0, 20:40, 20:40] = 5
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    got = encode_logits(logits, 30_000, 40_000, threads=2)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert 0.09 < got.rles[0].area / (30_000 * 40_000) < 0.11
    assert got.areas[0] == got.rles[0].area
    assert grown < 64 * 1024  # the mask alone would be 1.1 GiB


# --- COCO's two forms

DISC = np.hypot(*(np.mgrid[:40, :60] - np.array([17, 31])[:, None, None])) < 15
STRIPES = np.mgrid[:7, :11].sum(axis=0) % 3 == 0
# As pycocotools writes them.
KNOWN = [
    (np.eye(2)[::-1], "121"),
    (np.ones((3, 4)), "0<"),
    (np.zeros((3, 4)), "<"),
    (DISC, "de0;k04M2M4M2O0O2N2O0O2O00000000000000000001N101N2N101N3L3N3LVa0"),
    (STRIPES, "0120000000000000000000000000000000000000000000000000O"),
]


@pytest.mark.usefixtures("operations")
@pytest.mark.parametrize(("mask", "text"), KNOWN, ids=lambda value: getattr(value, "shape", ""))
def test_known_strings(mask: np.ndarray, text: str) -> None:
    size = list(mask.shape)
    [got] = encode(mask[None])
    assert got.to_coco() == {"size": size, "counts": text}
    assert got.to_coco(compressed=False) == {"size": size, "counts": reference_runs(mask > 0)}
    for counts in (text, text.encode(), reference_runs(mask > 0), got.counts):
        back = Rle.from_coco({"size": size, "counts": counts})
        assert np.array_equal(decode([back])[0], mask > 0)


@any_shape
@given(st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 40), max_size=20))
def test_text_of_any_runs(operations: Any, runs: list[int]) -> None:
    text = operations.runs_to_text(np.array(runs, np.uint32))
    assert text.decode() == reference_text(runs)
    back = operations.text_to_runs(text)
    assert back.dtype == np.uint32 and back.tolist() == runs


@any_shape
@given(st.binary(max_size=12) | st.lists(st.integers(45, 114), max_size=30).map(bytes))
def test_any_text_is_read_or_refused(text: bytes) -> None:
    results = []
    for module in OPERATIONS:
        try:
            results.append(module.text_to_runs(text).tolist())
        except ValueError as error:
            assert str(error).startswith("the text ") and "\n" not in str(error)
            results.append(None)
    assert results == results[:1] * len(results)


@pytest.mark.usefixtures("operations")
@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("1/1", "not between '0' and 'o'"),
        ("1p1", "not between '0' and 'o'"),
        ("1é1", "not between '0' and 'o'"),
        ("1\udc80", "surrogates not allowed"),
        ("11P", "ends inside a number"),
        ("PPPPPPP0", "more than 35 bits"),
        ("1O4", "run length outside"),
        ("", "add up to 0 pixels"),
        ("12", "add up to 3 pixels"),
        (b"141", "add up to 6 pixels"),
        ([1, 2], "add up to 3 pixels"),
        ([], "a string or a list of integers"),
        ([1.0, 3.0], "a string or a list of integers"),
        ([[1], [3]], "a string or a list of integers"),
        ([[1], 3], "a string or a list of integers"),
        (None, "a string or a list of integers"),
        ([-1, 5], "run length outside"),
        ([2**32, 4], "run length outside"),
        ([2**32 - 1, 2**32 - 1, 6], "add up to 8589934596 pixels"),
    ],
)
def test_damaged_counts(counts: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        Rle.from_coco({"size": [2, 2], "counts": counts})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"size": [2, 2]}, "must be {"),
        ("121", "must be {"),
        ({"size": [4], "counts": "121"}, r"must be \[height, width\]"),
        ({"size": [2.0, 2.0], "counts": "121"}, r"must be \[height, width\]"),
        ({"size": None, "counts": "121"}, r"must be \[height, width\]"),
        ({"size": [0, 4], "counts": "121"}, "can't be 4x0"),
        ({"size": [-2, -2], "counts": "121"}, "can't be -2x-2"),
        ({"size": [2**16, 2**16], "counts": "121"}, "can't be 65536x65536"),
    ],
)
def test_damaged_records(record: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        Rle.from_coco(record)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("operations")
def test_runs_that_are_refused() -> None:
    with pytest.raises(ImageError, match=r"must be \(K,\) uint32"):
        Rle(2, 2, np.array([4]))
    with pytest.raises(ImageError, match="none at all"):
        decode([])
    with pytest.raises(ImageError, match="one size, not 2x2, 3x2"):
        decode([encode(np.ones((1, 2, 2)))[0], encode(np.ones((1, 2, 3)))[0]])
    with pytest.raises(ImageError, match="shape"):
        encode(np.ones((2, 2)))
    with pytest.raises(ImageError, match="must be numbers"):
        encode(np.array([[["a"]]]))
    with pytest.raises(ImageError, match="can't be 2x0"):
        encode(np.ones((1, 0, 2)))
    with pytest.raises(ImageError, match="can't be 30x0"):
        encode_logits(np.ones((1, 4, 4), np.float32), 0, 30)
    with pytest.raises(ImageError, match="can't be 5x0"):
        encode_logits(np.ones((1, 0, 5), np.float32), 20, 30)


def test_operations_refuse_runs_of_another_size(operations: Any) -> None:
    for runs, relation in (([1, 2], "shorter"), ([1, 4], "longer"), ([], "shorter")):
        with pytest.raises(ValueError, match=f"{relation} than the mask"):
            operations.decode_masks([np.array(runs, np.uint32)], 2, 2)

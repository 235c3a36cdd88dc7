"""Masks: against torch and scipy, and the C++ part against its stand-ins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from vkrt.errors import ImageError, OutputError
from vkrt.media import fallback, masks, native
from vkrt.media.masks import (
    binarize,
    choose,
    clean_logits,
    fill_holes,
    magnitude,
    mask_to_logits,
    read_mask,
    remove_sprinkles,
    unpack,
    upsample,
    write_mask,
)

OPERATIONS = [fallback, native.operations] if native.available() else [fallback]
EIGHT = np.ones((3, 3), int)


@pytest.fixture(params=OPERATIONS, ids=lambda module: module.__name__)
def operations(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test with the stand-ins, and with the C++ part where there is one."""
    monkeypatch.setattr(masks, "operations", request.param)


def random_logits(*shape: int, seed: int = 0) -> np.ndarray:
    """Return smooth blobs with noise, as a decoder gives them."""
    rng = np.random.default_rng([seed, *shape])
    rough = rng.normal(0, 6, shape)
    return (ndimage.gaussian_filter(rough, (0, 2, 2)) * 6 + rng.normal(0, 0.5, shape)).astype(
        np.float32
    )


def torch_upsample(logits: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return what SAM 2 computes."""
    return torch.nn.functional.interpolate(
        torch.from_numpy(logits)[None], (height, width), mode="bilinear", align_corners=False
    )[0].numpy()


SIZES = [
    ((3, 64, 64), 123, 181),
    ((1, 32, 48), 32, 48),
    ((2, 64, 64), 31, 17),
    ((1, 1, 1), 9, 5),
    ((2, 5, 1), 1, 33),
    ((5, 16, 16), 1, 1),
    ((1, 64, 64), 600, 1000),
]


@pytest.mark.usefixtures("operations")
@pytest.mark.parametrize(("shape", "height", "width"), SIZES)
def test_upsample_is_torchs(shape: tuple[int, int, int], height: int, width: int) -> None:
    logits = random_logits(*shape)
    got = upsample(logits, height, width)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, torch_upsample(logits, height, width), rtol=1e-5, atol=2e-5)


@pytest.mark.usefixtures("operations")
@pytest.mark.parametrize(("shape", "height", "width"), SIZES)
def test_binarize_is_upsample_and_compare(
    shape: tuple[int, int, int], height: int, width: int
) -> None:
    logits = random_logits(*shape)
    large = torch_upsample(logits, height, width)
    for threshold, offset in ((0.0, 1.0), (0.7, 0.25)):
        got = binarize(logits, height, width, threshold, offset)
        assert got.masks.dtype == bool and got.masks.shape == large.shape
        sure = np.abs(large - threshold) > 1e-4
        assert np.array_equal(got.masks[sure], (large > threshold)[sure])
        assert sure.mean() > 0.99 or large.size < 100
        assert got.areas.dtype == np.int64
        assert np.array_equal(got.areas, got.masks.sum(axis=(1, 2)))
        own = upsample(logits, height, width)
        inner = (own > np.float32(threshold + offset)).sum(axis=(1, 2))
        outer = (own > np.float32(threshold - offset)).sum(axis=(1, 2))
        assert got.stability.dtype == np.float32
        np.testing.assert_allclose(got.stability, inner / np.maximum(outer, 1), rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 200),
    st.integers(1, 200),
    st.integers(1, 5),
)
def test_binarize_of_any_shape(
    n: int, h: int, w: int, height: int, width: int, threads: int
) -> None:
    logits = random_logits(n, h, w)
    got = binarize(logits, height, width, threads=threads)
    large = upsample(logits, height, width, threads=1)
    assert np.array_equal(got.masks, large > 0)
    assert np.array_equal(got.areas, (large > 0).sum(axis=(1, 2)))
    np.testing.assert_allclose(
        large, fallback.upsample(logits, height, width), rtol=1e-6, atol=1e-6
    )


@pytest.mark.skipif(not native.available(), reason=f"{native.why_missing()}")
@settings(max_examples=150, deadline=None)
@given(
    *(st.integers(1, n) for n in (12, 12, 90, 120)),
    st.integers(0, 2**32 - 1),
    st.sampled_from([(0.0, 1.0), (0.7, 0.25), (-1.0, 0.0), (3.0, -2.0), (1e-40, 1e30)]),
)
def test_doubtful_logits(
    h: int, w: int, height: int, width: int, seed: int, cut: tuple[float, float]
) -> None:
    """What the C++ part settles without interpolation is what interpolation gives."""
    rng = np.random.default_rng(seed)
    levels = np.array([cut[0], cut[0] + cut[1], cut[0] - cut[1]], np.float32)
    near = [np.nextafter(levels, np.float32(side), dtype=np.float32) for side in (-np.inf, np.inf)]
    odd = np.array([0, -0.0, 1e-45, -1e-38, 1e30, 3e38, -3e38, np.inf, -np.inf, np.nan, 9, -9])
    pool = np.concatenate([levels, *near, odd.astype(np.float32)])
    pool = rng.choice(pool, rng.integers(1, 4))
    logits = rng.choice(pool, (2, h, w))
    got = native.operations.binarize(logits, height, width, *cut)
    with np.errstate(all="ignore"):
        wanted = fallback.binarize(logits, height, width, *cut)
    for mine, other in zip(got, wanted, strict=True):
        assert mine.dtype == other.dtype and np.array_equal(mine, other)


@pytest.mark.skipif(not native.available(), reason=f"{native.why_missing()}")
def test_very_wide_masks() -> None:
    """A row without a settled pixel has more blocks than can be counted in bytes."""
    logits = np.tile(np.array([-8, 9, 9], np.float32), (1, 3, 4000))
    for mine, other in zip(
        native.operations.binarize(logits, 5, 30_001, 0.0, 1.0),
        fallback.binarize(logits, 5, 30_001, 0.0, 1.0),
        strict=True,
    ):
        assert np.array_equal(mine, other)


@pytest.mark.skipif(not native.available(), reason=f"{native.why_missing()}")
@pytest.mark.parametrize(
    ("value", "changes"),
    [(1e-45, True), (-1e-45, False), (3.4e38, False), (-3.4e38, False), (np.inf, True)],
)
def test_flat_planes_at_the_ends_of_float32(value: float, changes: bool) -> None:
    """Half of the least number is rounded to 0, and infinity times 0 is NaN."""
    logits = np.full((1, 4, 8), value, np.float32)
    changed = False
    for height, width in ((2, 4), (4, 8), (40, 90), (61, 123)):
        got = native.operations.binarize(logits, height, width, 0.0, 1.0)
        with np.errstate(all="ignore"):
            wanted = fallback.binarize(logits, height, width, 0.0, 1.0)
        for mine, other in zip(got, wanted, strict=True):
            assert np.array_equal(mine, other)
        changed |= bool((wanted[0] != (value > 0)).any())
    assert changed == changes


@pytest.mark.usefixtures("operations")
@pytest.mark.parametrize(("shape", "height", "width"), SIZES)
def test_boxes_and_packed_masks(shape: tuple[int, int, int], height: int, width: int) -> None:
    logits = random_logits(*shape) - 4
    plain = binarize(logits, height, width)
    assert plain.boxes.dtype == np.float32 and plain.boxes.shape == (len(logits), 4)
    for mask, box in zip(plain.masks, plain.boxes, strict=True):
        y, x = np.nonzero(mask)
        wanted = [x.min(), y.min(), x.max(), y.max()] if x.size else [0, 0, 0, 0]
        assert box.tolist() == wanted
    packed = binarize(logits, height, width, packed=True)
    assert packed.masks.dtype == np.uint8
    assert np.array_equal(packed.masks, np.packbits(plain.masks, axis=-1))
    assert np.array_equal(unpack(packed.masks, width), plain.masks)
    for mine, other in zip(packed[1:], plain[1:], strict=True):
        assert np.array_equal(mine, other)


@pytest.mark.usefixtures("operations")
def test_packed_masks_that_are_empty_full_or_none() -> None:
    for width in (1, 8, 31, 32, 33, 123):
        levels = np.array([[[-9]], [[9]]], np.float32)
        got = binarize(levels, 5, width, packed=True)
        assert np.array_equal(got.masks[0], np.packbits(np.zeros((5, width), bool), axis=-1))
        assert np.array_equal(got.masks[1], np.packbits(np.ones((5, width), bool), axis=-1))
        assert got.boxes.tolist() == [[0, 0, 0, 0], [0, 0, width - 1, 4]]
    none = binarize(np.zeros((0, 8, 8), np.float32), 20, 30, packed=True)
    assert none.masks.shape == (0, 20, 4) and none.boxes.shape == (0, 4)


def test_unpacking_what_is_not_packed() -> None:
    for packed, width in (
        (np.zeros((2, 4), bool), 30),
        (np.zeros((2, 4), np.uint8), 33),
        (np.zeros((2, 4), np.uint8), 24),
    ):
        with pytest.raises(ImageError, match=f"packed masks {width} pixels wide"):
            unpack(packed, width)


@pytest.mark.usefixtures("operations")
@pytest.mark.parametrize("call", [binarize, upsample])
def test_bad_logits_and_sizes(call: Callable[..., object]) -> None:
    logits = random_logits(1, 8, 8)
    for bad, message in (
        (logits[0], r"logits must have shape \(N, height, width\), not \(8, 8\)"),
        (logits.astype(complex), "logits must be numbers, not complex128"),
        (logits[:, :0], "can't be 8x0"),
    ):
        with pytest.raises(ImageError, match=message) as caught:
            call(bad, 20, 30)
        assert "\n" not in str(caught.value)
    for height, width in ((0, 30), (20, -1), (2**24 + 1, 1), (2**16, 2**16)):
        with pytest.raises(ImageError, match=f"can't be {width}x{height}"):
            call(logits, height, width)


@pytest.mark.usefixtures("operations")
def test_bad_masks() -> None:
    for call in (fill_holes, remove_sprinkles):
        with pytest.raises(ImageError, match="masks must have shape"):
            call(np.ones((4, 4), bool), 3)
    with pytest.raises(ImageError, match="logits must have shape"):
        clean_logits(np.ones((4, 4), np.float32), 0.0, 3)


@pytest.mark.usefixtures("operations")
def test_binarize_of_nothing_and_of_empty_masks() -> None:
    none = binarize(np.zeros((0, 8, 8), np.float32), 20, 30)
    assert none.masks.shape == (0, 20, 30) and none.areas.shape == none.stability.shape == (0,)
    assert upsample(np.zeros((0, 8, 8), np.float32), 20, 30).shape == (0, 20, 30)
    empty = binarize(np.full((1, 8, 8), -9, np.float32), 20, 30)
    assert not empty.masks.any() and empty.areas[0] == 0 and empty.stability[0] == 0
    full = binarize(np.full((1, 8, 8), 9, np.float32), 20, 30)
    assert full.masks.all() and full.areas[0] == 600 and full.stability[0] == 1
    unknown = binarize(np.full((1, 8, 8), np.nan, np.float32), 20, 30)
    assert not unknown.masks.any()


@pytest.mark.usefixtures("operations")
def test_layouts_and_dtypes_are_brought_in_line() -> None:
    logits = random_logits(2, 20, 30)
    turned = np.asfortranarray(logits)
    assert np.array_equal(upsample(turned, 50, 40), upsample(logits, 50, 40))
    assert np.array_equal(
        binarize(logits.astype(np.float64), 50, 40).masks, upsample(logits, 50, 40) > 0
    )


# --- components


def scipy_small(mask: np.ndarray, max_area: int) -> np.ndarray:
    """Return the small 8-connected components of a mask, by scipy."""
    labels, count = ndimage.label(mask, EIGHT)
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    small = areas <= max_area
    small[0] = False
    return small[labels]


@pytest.mark.usefixtures("operations")
@pytest.mark.parametrize("density", [0.02, 0.2, 0.41, 0.5, 0.7, 0.97])
@pytest.mark.parametrize("max_area", [1, 3, 20])
def test_components_are_scipys(density: float, max_area: int) -> None:
    rng = np.random.default_rng(int(density * 100))
    batch = rng.random((3, 61, 83)) < density
    filled = fill_holes(batch, max_area)
    cleared = remove_sprinkles(batch, max_area)
    changed = 0
    for mask, more, less in zip(batch, filled, cleared, strict=True):
        assert np.array_equal(more, mask | scipy_small(~mask, max_area))
        assert np.array_equal(less, mask & ~scipy_small(mask, max_area))
        changed += np.count_nonzero(more != mask) + np.count_nonzero(less != mask)
    assert changed > 0


@pytest.mark.usefixtures("operations")
@settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, 2**32 - 1), st.integers(0, 40))
def test_components_of_any_shape(height: int, width: int, seed: int, max_area: int) -> None:
    rng = np.random.default_rng(seed)
    mask = ndimage.zoom(rng.random((height, width)), 1.7, order=1) < rng.random()
    filled = fill_holes(mask[None], max_area)[0]
    assert np.array_equal(filled, mask | scipy_small(~mask, max_area))
    cleared = remove_sprinkles(mask[None], max_area)[0]
    assert np.array_equal(cleared, mask & ~scipy_small(mask, max_area))


@pytest.mark.usefixtures("operations")
def test_corners_connect_and_the_input_stays() -> None:
    mask = np.ones((1, 6, 6), bool)
    mask[0, 1, 1] = mask[0, 2, 2] = mask[0, 3, 1] = mask[0, 5, 5] = False
    before = mask.copy()
    filled = fill_holes(mask, 2)
    assert np.array_equal(mask, before)
    assert filled[0, 5, 5] and not filled[0, 1, 1] and not filled[0, 3, 1]
    assert fill_holes(mask, 3).all()
    assert np.array_equal(fill_holes(mask, 0), mask)
    assert fill_holes(mask[:0], 5).shape == (0, 6, 6)


@pytest.mark.usefixtures("operations")
def test_spiral_is_one_component() -> None:
    spiral = np.zeros((41, 41), bool)
    y, x, dy, dx = 0, 0, 0, 1
    for length in range(40, 0, -2):
        for _ in range(4):
            for _ in range(length):
                spiral[y, x] = True
                y, x = y + dy, x + dx
            dy, dx = dx, -dy
        y, x = y + 1, x + 1
        if not (0 <= y < 41 and 0 <= x < 41):
            break
    area = int(spiral.sum())
    assert ndimage.label(spiral, EIGHT)[1] == 1
    assert not remove_sprinkles(spiral[None], area).any()
    assert np.array_equal(remove_sprinkles(spiral[None], area - 1)[0], spiral)


@pytest.mark.usefixtures("operations")
@pytest.mark.parametrize(("holes", "sprinkles"), [(6, 0), (0, 6), (4, 9), (0, 0)])
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_clean_logits(holes: int, sprinkles: int, threshold: float) -> None:
    logits = np.random.default_rng(3).normal(0, 1, (3, 40, 50)).astype(np.float32)
    got = clean_logits(logits, threshold, holes, sprinkles)
    wanted = logits.copy()
    for plane, target in zip(logits, wanted, strict=True):
        if holes:
            target[scipy_small(plane <= threshold, holes)] = threshold + 10
        if sprinkles:
            target[scipy_small(plane > threshold, sprinkles)] = threshold - 10
    assert np.array_equal(got, wanted)
    assert (got != logits).any() == bool(holes or sprinkles)


@pytest.mark.usefixtures("operations")
def test_small_ring_turns_inside_out() -> None:
    logits = np.full((1, 9, 9), -3, np.float32)
    logits[0, 3:6, 3:6] = 2
    logits[0, 4, 4] = -1
    got = clean_logits(logits, 0.0, 8, 8)
    assert got[0, 4, 4] == 10 and got[0, 3, 3] == -10 and got[0, 0, 0] == -3


@pytest.mark.usefixtures("operations")
def test_nan_is_neither_hole_nor_sprinkle() -> None:
    logits = np.full((1, 5, 5), 2, np.float32)
    logits[0, 2, 2] = np.nan
    logits[0, 0, 0] = -1
    got = clean_logits(logits, 0.0, 4, 4)
    assert np.isnan(got[0, 2, 2]) and got[0, 0, 0] == 10


# --- choosing


def four_masks(outer: int, inner: int) -> tuple[np.ndarray, np.ndarray]:
    """Return one prompt's masks, mask 0 with pixels above -0.05 and above 0.05."""
    logits = np.full((1, 4, 10, 10), -1, np.float32)
    logits[0, 0].flat[:outer] = 0.0
    logits[0, 0].flat[:inner] = 0.06
    logits[0, 1:] = np.arange(1, 4)[:, None, None]
    return logits, np.array([[0.5, 0.6, 0.9, 0.7]], np.float32)


def test_choose_all() -> None:
    logits, iou = four_masks(100, 50)
    got, scores = choose(logits, iou, multimask=True)
    assert np.array_equal(got, logits[:, 1:]) and np.array_equal(scores, iou[:, 1:])


@pytest.mark.parametrize(
    ("outer", "inner", "picked"), [(100, 98, 0), (100, 97, 2), (50, 49, 0), (50, 48, 2), (0, 0, 0)]
)
def test_choose_one(outer: int, inner: int, picked: int) -> None:
    logits, iou = four_masks(outer, inner)
    got, scores = choose(logits, iou, multimask=False)
    assert got.shape == (1, 1, 10, 10) and scores.shape == (1, 1)
    assert np.array_equal(got[0, 0], logits[0, picked]) and scores[0, 0] == iou[0, picked]
    got, scores = choose(logits, iou, multimask=False, dynamic=False)
    assert np.array_equal(got[0, 0], logits[0, 0]) and scores[0, 0] == iou[0, 0]


def test_choose_for_each_prompt() -> None:
    stable, unstable = four_masks(100, 100), four_masks(100, 10)
    logits = np.concatenate([stable[0], unstable[0]])
    iou = np.concatenate([stable[1], unstable[1][:, ::-1]])
    _, scores = choose(logits, iou, multimask=False)
    assert np.allclose(scores[:, 0], [0.5, 0.9])


def test_magnitude() -> None:
    logits = np.array([[[4, -9], [2, 0]], [[-1, -2], [-3, 0]]], np.float32)
    got = magnitude(logits)
    assert got.dtype == np.float32 and got.tolist() == [3.0, 0.0]


# --- masks as prompts and as files


def test_mask_to_logits() -> None:
    mask = np.zeros((8, 16), bool)
    mask[:4, :8] = True
    mask[4:, 8:12] = True
    got = mask_to_logits(mask, 2)
    assert got.shape == (1, 2, 2) and got.dtype == np.float32
    assert got[0].tolist() == [[10.0, -10.0], [-10.0, 0.0]]
    bytes_mask = np.where(mask, 255, 0).astype(np.uint8)
    assert np.array_equal(mask_to_logits(bytes_mask, 2), got)


@pytest.mark.parametrize("shape", [(1, 1), (7, 300), (64, 64), (100, 75)])
def test_mask_prompt_survives_the_way_back(shape: tuple[int, int]) -> None:
    mask = np.zeros(shape, bool)
    mask[: -(-shape[0] // 2)] = True
    logits = mask_to_logits(mask, 64)
    assert logits.min() >= -10 and logits.max() <= 10
    back = binarize(logits, *shape).masks[0]
    assert (back != mask).mean() <= 0.02


@pytest.mark.parametrize("shape", [(0, 4), (4,), (1, 4, 4)])
def test_mask_prompt_of_a_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match=r"must be \(H, W\)"):
        mask_to_logits(np.zeros(shape, bool), 64)


def test_mask_file(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random((13, 21)) < 0.4
    path = tmp_path / "mask.png"
    write_mask(path, mask)
    with Image.open(path) as picture:
        assert picture.mode == "L" and set(np.unique(np.asarray(picture))) == {0, 255}
    assert np.array_equal(read_mask(path), mask)
    Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8)).save(path)
    assert read_mask(path).tolist() == [[False, False, True, True]]
    with pytest.raises(OutputError, match="does not exist"):
        write_mask(tmp_path / "none" / "mask.png", mask)

"""Tiles: they cover everything, share what they must, and leave no seam."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vkrt.engines.tiling import decode_tiled, encode_tiled, spans_of, weights_of

STRIDE = 4


def decode_near(latent: np.ndarray) -> np.ndarray:
    """Decode so that a pixel depends on the latent pixels next to its own only."""
    padded = np.pad(latent[:, :3], ((0, 0), (0, 0), (1, 1), (1, 1)))
    height, width = latent.shape[-2:]
    mixed = sum(
        (y + 2 * x + 1) * padded[:, :, y : y + height, x : x + width]
        for y in range(3)
        for x in range(3)
    )
    return np.repeat(np.repeat(mixed, STRIDE, 2), STRIDE, 3).astype(np.float32)


def encode_each(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Encode each latent pixel by itself, into two arrays."""
    rows, columns = (side // STRIDE for side in pixels.shape[-2:])
    blocks = pixels.reshape(*pixels.shape[:2], rows, STRIDE, columns, STRIDE)
    return blocks.mean((3, 5)), blocks.max((3, 5))


def values(*shape: int) -> np.ndarray:
    """Return random values."""
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@settings(deadline=None)
@given(st.integers(1, 400), st.integers(1, 70), st.data())
def test_tiles_cover_the_axis_and_overlap(size: int, tile: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, tile // 2))
    spans = spans_of(size, tile, overlap)
    assert spans[0].start == 0 and spans[-1].stop == size
    assert {span.stop - span.start for span in spans} == {spans[0].stop}
    assert spans[0].stop <= tile
    for before, after in pairwise(spans):
        assert before.start < after.start <= before.stop - overlap
    total = np.zeros(size * 3)
    for span, weight in zip(spans, weights_of(spans, overlap, 3), strict=True):
        assert (weight >= 0).all()
        total[span.scaled(3)] += weight
    np.testing.assert_allclose(total, 1, rtol=1e-6)


def test_there_are_no_more_tiles_than_needed() -> None:
    assert len(spans_of(128, 64, 0)) == 2
    assert len(spans_of(112, 64, 16)) == 2
    assert len(spans_of(113, 64, 16)) == 3
    assert [(s.start, s.stop) for s in spans_of(65, 64, 16)] == [(0, 41), (24, 65)]


@pytest.mark.parametrize(("rows", "columns"), [(5, 30), (31, 8), (29, 23), (16, 16)])
def test_a_decoder_that_looks_near_gives_the_same(rows: int, columns: int) -> None:
    latent = values(2, 4, rows, columns)
    found = decode_tiled(decode_near, latent, 12, 4, STRIDE)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, decode_near(latent), rtol=1e-4, atol=1e-4)


def test_one_tile_changes_nothing() -> None:
    latent = values(2, 4, 9, 11)
    assert np.array_equal(decode_tiled(decode_near, latent, 11, 4, STRIDE), decode_near(latent))


def test_a_step_between_tiles_becomes_a_slope() -> None:
    count = iter(range(9))

    def shade(part: np.ndarray) -> np.ndarray:
        size = [side * STRIDE for side in part.shape[-2:]]
        return np.full((1, 3, *size), next(count), np.float32)

    row = decode_tiled(shade, values(1, 4, 3, 20), 12, 4, STRIDE)[0, 0, 0]
    # The tiles share 8 to 12, of which a quarter at each end counts for one of them only.
    slope = np.clip((np.arange(80) + 0.5 - 9 * STRIDE) / (2 * STRIDE), 0, 1)
    np.testing.assert_allclose(row, slope, atol=1e-6)


def test_only_tiles_are_decoded() -> None:
    sizes = []

    def note(part: np.ndarray) -> np.ndarray:
        assert part.flags.c_contiguous
        sizes.append(part.shape)
        return decode_near(part)

    decode_tiled(note, values(2, 4, 40, 21), 12, 3, STRIDE)
    assert set(sizes) == {(1, 4, 11, 12)} and len(sizes) == 2 * 5 * 2


def test_encoding_gives_every_array() -> None:
    pixels = values(2, 3, 21 * STRIDE, 10 * STRIDE)
    for found, wanted in zip(
        encode_tiled(encode_each, pixels, 8, 2, STRIDE), encode_each(pixels), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("size", "tile", "overlap"), [(0, 8, 2), (9, 0, 0), (9, 8, 5), (9, 8, -1)])
def test_impossible_tiles_are_refused(size: int, tile: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="no tiles"):
        spans_of(size, tile, overlap)

"""The autoencoder run tile by tile, so that large pictures need no more memory than small ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil

import numpy as np

__all__ = ["Span", "decode_tiled", "encode_tiled", "spans_of"]


@dataclass(frozen=True)
class Span:
    """Say where a tile lies along one axis, in latent pixels.

    Attributes:
        start, stop: its first pixel and the one behind its last.
    """

    start: int
    stop: int

    def scaled(self, factor: int) -> slice:
        """Return the same place where each latent pixel counts `factor`."""
        return slice(self.start * factor, self.stop * factor)


def spans_of(size: int, tile: int, overlap: int) -> list[Span]:
    """Return the tiles along an axis: as few as may be, all of one length, evenly spread.

    Args:
        size: of the axis.
        tile: the most that a tile may measure.
        overlap: the least that two neighbours share, at most half a tile.

    Raises:
        ValueError: there is nothing to divide, or the overlap is negative or too large.
    """
    if size < 1 or tile < 1 or not 0 <= 2 * overlap <= tile:
        raise ValueError(f"no tiles of {tile} that share {overlap} divide {size}")
    if size <= tile:
        return [Span(0, size)]
    count = ceil((size - overlap) / (tile - overlap))
    # No longer than it has to be: a shorter tile is less work.
    length = ceil((size + (count - 1) * overlap) / count)
    starts = [index * (size - length) // (count - 1) for index in range(count)]
    return [Span(start, start + length) for start in starts]


def weights_of(spans: Sequence[Span], overlap: int, factor: int) -> list[np.ndarray]:
    """Return how much each tile counts at each of its pixels; at every place they sum to 1.

    From a border that is not the picture's own, a tile counts nothing over a quarter of the
    overlap, where it misses most of what lies beyond; then it rises in a straight line over half.

    Args:
        spans: of one axis, in order.
        overlap: as for spans_of.
        factor: pixels to a latent pixel.

    Returns:
        one (length * factor,) float32 for each span.
    """
    total = np.zeros(spans[-1].stop * factor)
    margin, ramp = overlap * factor / 4, max(overlap * factor / 2, 0.5)
    weights = []
    for index, span in enumerate(spans):
        places = np.arange((span.stop - span.start) * factor) + 0.5
        weight = np.ones(len(places))
        if index > 0:
            weight *= np.clip((places - margin) / ramp, 0, 1)
        if index < len(spans) - 1:
            weight *= np.clip((places[::-1] - margin) / ramp, 0, 1)
        total[span.scaled(factor)] += weight
        weights.append(weight)
    return [
        (weight / total[span.scaled(factor)]).astype(np.float32)
        for span, weight in zip(spans, weights, strict=True)
    ]


def decode_tiled(
    decode: Callable[[np.ndarray], np.ndarray],
    latent: np.ndarray,
    tile: int = 64,
    overlap: int | None = None,
    stride: int = 8,
) -> np.ndarray:
    """Decode latents one tile at a time and blend the seams.

    A decoder that looks no further than a quarter of the overlap gives what it gives at once. That
    of an autoencoder looks at the whole (its norms and its attention), so tones may differ a
    little between tiles; the blending makes such a step a slope.

    Args:
        decode: makes (1, 3, h * stride, w * stride) float32 of (1, C, h, w) float32.
        latent: (B, C, H, W) float32; one that fits into a tile is decoded as it is.
        tile: the longest side of a tile, in latent pixels.
        overlap: what neighbours share at least; None is a quarter of a tile.
        stride: pixels along a latent pixel.

    Returns:
        (B, 3, H * stride, W * stride) float32.

    Raises:
        ValueError: the overlap is more than half a tile.
    """

    def run(part: np.ndarray) -> tuple[np.ndarray]:
        return (decode(part),)

    return run_tiled(run, latent, tile, overlap, 1, stride)[0]


def encode_tiled(
    encode: Callable[[np.ndarray], tuple[np.ndarray, ...]],
    pixels: np.ndarray,
    tile: int = 64,
    overlap: int | None = None,
    stride: int = 8,
) -> tuple[np.ndarray, ...]:
    """Encode pictures one tile at a time and blend the seams.

    Args:
        encode: makes arrays (1, C, h, w) float32, such as mean and std, of
            (1, 3, h * stride, w * stride) float32.
        pixels: (B, 3, H * stride, W * stride) float32.
        tile, overlap, stride: as for decode_tiled.

    Returns:
        (B, C, H, W) float32 for each array that `encode` gives.

    Raises:
        ValueError: the overlap is more than half a tile.
    """
    return run_tiled(encode, pixels, tile, overlap, stride, 1)


def run_tiled(
    run: Callable[[np.ndarray], tuple[np.ndarray, ...]],
    array: np.ndarray,
    tile: int,
    overlap: int | None,
    factor_in: int,
    factor_out: int,
) -> tuple[np.ndarray, ...]:
    """Run on one tile of one row at a time; a latent pixel is `factor_in` and gives `factor_out`.

    Held at any time are the array, the results and what belongs to one tile.
    """
    overlap = tile // 4 if overlap is None else overlap
    rows, columns = (spans_of(side // factor_in, tile, overlap) for side in array.shape[-2:])
    high, wide = (weights_of(spans, overlap, factor_out) for spans in (rows, columns))
    size = rows[-1].stop * factor_out, columns[-1].stop * factor_out
    results: tuple[np.ndarray, ...] = ()
    for row, (down, y), (across, x) in places(len(array), rows, columns):
        part = array[row : row + 1, :, down.scaled(factor_in), across.scaled(factor_in)]
        found = run(np.ascontiguousarray(part))
        if not results:
            results = tuple(np.zeros((len(array), a.shape[1], *size), np.float32) for a in found)
        for result, tile_result in zip(results, found, strict=True):
            weighted = tile_result[0] * high[y][:, None]
            weighted *= wide[x]
            result[row, :, down.scaled(factor_out), across.scaled(factor_out)] += weighted
    return results


def places(
    count: int, rows: Sequence[Span], columns: Sequence[Span]
) -> Iterator[tuple[int, tuple[Span, int], tuple[Span, int]]]:
    """Give each tile: its picture's number, then along each axis its span and that one's number."""
    for row, y, x in product(range(count), range(len(rows)), range(len(columns))):
        yield row, (rows[y], y), (columns[x], x)

"""Tracked frames on disk, for a way that does not go from the first frame to the last."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from vkrt.engines.tracked import TrackedFrame
from vkrt.media.rle import Rle, decode, encode

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Spool"]


class Spool:
    """Keep tracked frames in a temporary file as run lengths, and give them in order.

    In memory are a few numbers of each. The file is gone when the `with` block is left.

    Raises:
        OSError: there is no room for the file.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="vkrt-")  # noqa: SIM115, closed on leaving
        self._places: dict[int, tuple[int, int]] = {}
        self._end = 0

    def __len__(self) -> int:
        return len(self._places)

    def put(self, found: TrackedFrame) -> None:
        """Keep a frame, in place of an earlier one of its number; its logits are not kept."""
        runs = [rle.counts for rle in encode(found.masks)]
        record = io.BytesIO()
        np.savez(
            record,
            size=found.masks.shape[1:],
            ids=np.array(found.obj_ids, np.int64),
            scores=found.scores,
            object_scores=found.object_scores,
            lengths=[len(counts) for counts in runs],
            runs=np.concatenate(runs),
        )
        self._file.seek(self._end)
        written = self._file.write(record.getbuffer())
        self._places[found.frame] = self._end, written
        self._end += written

    def __iter__(self) -> Iterator[TrackedFrame]:
        """Give the frames from the lowest number to the highest, with logits (N, 0, 0)."""
        for frame in sorted(self._places):
            yield self._get(frame)

    def _get(self, frame: int) -> TrackedFrame:
        """Return a frame."""
        place, size = self._places[frame]
        self._file.seek(place)
        with np.load(io.BytesIO(self._file.read(size))) as record:
            height, width = (int(side) for side in record["size"])
            runs = np.split(record["runs"], np.cumsum(record["lengths"])[:-1])
            return TrackedFrame(
                frame=frame,
                obj_ids=tuple(int(each) for each in record["ids"]),
                masks=decode([Rle(height, width, counts) for counts in runs]),
                scores=record["scores"],
                object_scores=record["object_scores"],
                logits=np.empty((len(runs), 0, 0), np.float32),
            )

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

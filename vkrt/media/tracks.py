"""Tracks as JSON: each object's mask, scores and box in each frame, written as they come."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from vkrt.errors import VideoError
from vkrt.media.boxes import measure
from vkrt.media.pending import PendingOutput
from vkrt.media.planes import as_masks
from vkrt.media.rle import encode
from vkrt.temporary import explained

__all__ = ["TracksWriter"]


class TracksWriter(PendingOutput):
    """Write what was tracked into a JSON file, in a `with` block, a line for each frame.

    The file holds {"size": [height, width], "fps": ..., "frames": [...]}; a frame is
    {"frame": number, "objects": [...]}, in the order written; an object has
        id: the object's;
        score: the predicted IoU;
        object_score: the logit of the object being seen at all;
        area: in pixels;
        box: x, y, width, height in pixels, null where the mask is empty;
        mask: {"size": [height, width], "counts": "..."} as COCO has it.
    A score that is not a finite number is null. One frame is in memory. The file appears under its
    name when the block is left.

    Args:
        path: the JSON file.
        fps: of the clip, None if unknown.

    Raises:
        OutputError: the folder is missing, or `path` may not be written.
    """

    def __init__(self, path: str | os.PathLike[str], fps: float | None = None) -> None:
        super().__init__(path)
        self._fps = fps
        self._size: tuple[int, int] | None = None
        self._begun = False

    def __enter__(self) -> TracksWriter:
        return self

    def write(
        self,
        frame: int,
        ids: Sequence[int] | np.ndarray,
        masks: np.ndarray,
        scores: Sequence[float] | np.ndarray,
        object_scores: Sequence[float] | np.ndarray,
    ) -> None:
        """Add a frame.

        Args:
            frame: its number.
            ids: (N,), of the objects.
            masks: (N, H, W) bool.
            scores: (N,) predicted IoU.
            object_scores: (N,).

        Raises:
            ImageError: the masks are no such array.
            VideoError: there is not one of each for an object, the masks have another size than
                those before, or the file is closed.
            OutputError: the disk is full.
        """
        if not self.is_open:
            raise VideoError(f"{self.path} is closed; open another file for more frames")
        planes = as_masks(masks)
        counts = {len(ids), len(planes), len(scores), len(object_scores)}
        if len(counts) != 1:
            raise VideoError(
                f"frame {frame} needs an id, a mask and two scores for each object, not "
                f"{len(ids)}, {len(planes)}, {len(scores)} and {len(object_scores)} of them"
            )
        size = planes.shape[1], planes.shape[2]
        if self._size not in (None, size):
            raise VideoError(
                f"masks of frame {frame} are {size[1]}x{size[0]}, unlike those before; scale all "
                "masks to one size first"
            )
        objects = describe(ids, planes, scores, object_scores)
        with explained(self.path):
            self._begin(size)
            self._line({"frame": int(frame), "objects": objects})

    def _begin(self, size: tuple[int, int] | None) -> None:
        """Write what comes before the next frame: the head of the file, or a comma."""
        if self._begun:
            self.stream.write(b",\n")
            return
        self._begun, self._size = True, size
        head = json.dumps({"size": size, "fps": self._fps}, allow_nan=False)
        self.stream.write(head[:-1].encode() + b', "frames": [\n')

    def _line(self, value: Any) -> None:
        self.stream.write(json.dumps(value, allow_nan=False).encode())

    def _finish(self) -> None:
        if not self._begun:
            self._begin(None)
        self.stream.write(b"\n]}\n")


def describe(
    ids: Sequence[int] | np.ndarray,
    masks: np.ndarray,
    scores: Sequence[float] | np.ndarray,
    object_scores: Sequence[float] | np.ndarray,
) -> list[dict[str, Any]]:
    """Return the objects of one frame as JSON has them."""
    areas, corners = measure(masks)
    return [
        {
            "id": int(ids[index]),
            "score": number(scores[index]),
            "object_score": number(object_scores[index]),
            "area": int(areas[index]),
            "box": as_box(corners[index]) if areas[index] else None,
            "mask": rle.to_coco(),
        }
        for index, rle in enumerate(encode(masks))
    ]


def as_box(corners: np.ndarray) -> list[int]:
    """Return x, y, width, height of the first and last column and row."""
    x0, y0, x1, y1 = (int(value) for value in corners)
    return [x0, y0, x1 - x0 + 1, y1 - y0 + 1]


def number(value: Any) -> float | None:
    """Return a float with four decimals; None for what JSON can't hold."""
    return round(float(value), 4) if math.isfinite(value) else None

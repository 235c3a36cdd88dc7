"""Squares of decoded frames, scaled as SAM 2's own reader of video files scales them."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from vkrt.media.decoder import load_av, quarter_turns

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

__all__ = ["FrameScaler"]

# What turns a frame counterclockwise by so many quarters.
TURNS = ((), ("2",), ("1", "1"), ("1",))
# Nothing here depends on when a frame is shown, but FFmpeg wants to know.
TIME_BASE = Fraction(1, 1000)


class FrameScaler:
    """Scale frames to squares of RGB inside FFmpeg, before their colours are converted.

    That is what decord does, which SAM 2 reads MP4 files with: FFmpeg's filter "scale" in the
    bilinear mode that was its default when decord 0.6 was built, after the turn that the file asks
    for. The filter is as wide as two pixels of the smaller picture, so that nothing aliases.
    """

    def __init__(self) -> None:
        self._graph: Any = None
        self._made_for: tuple[Any, ...] = ()

    def square(self, frame: VideoFrame, side: int) -> np.ndarray:
        """Return a frame as (side, side, 3) uint8 RGB, upright.

        Raises:
            av.FFmpegError: FFmpeg can't scale its pixel format.
        """
        turns = quarter_turns(frame)
        made_for = frame.width, frame.height, frame.format.name, turns, side
        if made_for != self._made_for:
            self._graph, self._made_for = make_graph(frame, turns, side), made_for
        self._graph.push(frame)
        return np.ascontiguousarray(self._graph.pull().to_ndarray(format="rgb24"))


def make_graph(frame: VideoFrame, turns: int, side: int) -> Any:
    """Return FFmpeg's filters for frames like this one."""
    graph = load_av().filter.Graph()
    node = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=TIME_BASE
    )
    filters = [
        *(("transpose", turn) for turn in TURNS[turns]),
        ("scale", f"{side}:{side}:flags=bilinear"),
        ("format", "rgb24"),
        ("buffersink", None),
    ]
    for name, arguments in filters:
        following = graph.add(name, arguments)
        node.link_to(following)
        node = following
    graph.configure()
    return graph

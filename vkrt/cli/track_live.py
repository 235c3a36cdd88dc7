"""Live tracking: frames as they come, until enough of them came or somebody stops it."""

from __future__ import annotations

import signal
import threading
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vkrt.cli.signals import STOPS
from vkrt.cli.track_prompts import FramePrompt

if TYPE_CHECKING:
    from vkrt.engines.prompt import Prompt
    from vkrt.engines.sam2_video import Stream
    from vkrt.engines.tracked import TrackedFrame
    from vkrt.media.frames import Frames

__all__ = ["stoppable", "track_live"]


def track_live(
    stream: Stream,
    camera: Frames,
    prompts: Sequence[FramePrompt],
    frames: int | None,
    stopped: Callable[[], bool],
) -> Generator[TrackedFrame, None, None]:
    """Track objects through live frames, from the first prompted one on.

    Args:
        camera: counts its frames from 0.
        prompts: of frames to come.
        frames: how many to give; None goes on until the camera ends or is stopped.
        stopped: tells whether to stop.
    """
    waiting: defaultdict[int, list[Prompt]] = defaultdict(list)
    for said in prompts:
        waiting[said.frame].append(said.prompt)
    given = 0
    for index, photo in enumerate(camera):
        if stopped():
            return
        here = waiting.pop(index, [])
        if here or stream.objects:
            yield replace(stream.step(photo, here), frame=index)
            given += 1
        if given == frames:
            return


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Give a function that tells whether Ctrl-C or an end of the process was asked for.

    The first one only asks, so that what is being written can be finished; the second interrupts.
    """
    asked = False

    def ask(*_: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    # Python lets only the main thread handle signals.
    handles = threading.current_thread() is threading.main_thread()
    # Under nohup a closed terminal is no reason to stop.
    stops = (signal.SIGINT, *(s for s in STOPS if signal.getsignal(s) is not signal.SIG_IGN))
    earlier = {each: signal.signal(each, ask) for each in stops} if handles else {}
    try:
        yield lambda: asked
    finally:
        for each, handler in earlier.items():
            signal.signal(each, handler or signal.SIG_DFL)

"""The way through a clip: where tracking starts, which way it goes, and how far."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from vkrt.cli.track_prompts import FramePrompt
from vkrt.errors import PromptError

if TYPE_CHECKING:
    from vkrt.engines.sam2_track import Track
    from vkrt.engines.tracked import TrackedFrame

__all__ = ["Route", "follow", "plan_route"]


@dataclass(frozen=True)
class Route:
    """Say which frames are tracked, and in what order.

    Attributes:
        start: the first frame.
        reverse: go back in time.
        both: go on from the first frame, then back from it.
        frames: at most so many; with `both`, so many each way. None goes to the end.
    """

    start: int
    reverse: bool = False
    both: bool = False
    frames: int | None = None

    @property
    def is_forward(self) -> bool:
        """Tell whether the frames come in order."""
        return not (self.reverse or self.both)

    def expected(self, count: int | None) -> int | None:
        """Return how many frames to expect of a clip of so many; None where that is unknown."""
        onward = None if count is None else max(count - self.start, 0)
        if self.reverse:
            return self._limited(self.start + 1)
        if not self.both:
            return self._limited(onward)
        there, back = self._limited(onward), self._limited(self.start)
        return None if there is None or back is None else there + back

    def _limited(self, frames: int | None) -> int | None:
        """Return so many frames, or as many as are wanted."""
        return min((f for f in (frames, self.frames) if f is not None), default=None)

    def corrections(self, prompts: Sequence[FramePrompt]) -> list[FramePrompt]:
        """Return the prompts that correct what is tracked by then, in the order of the way.

        These are points on a frame beyond the start, of an object that was named before.
        """
        sign = -1 if self.reverse else 1
        ordered = sorted(prompts, key=lambda said: sign * said.frame)
        named: dict[int, int] = {}
        for said in ordered:
            named.setdefault(said.prompt.obj, said.frame)
        return [
            said
            for said in ordered
            if said.refines
            and sign * said.frame > sign * self.start
            and said.frame != named[said.prompt.obj]
        ]


def plan_route(
    prompts: Sequence[FramePrompt],
    start: int | None,
    reverse: bool,
    both: bool,
    frames: int | None,
) -> Route:
    """Return the way that the options ask for.

    Args:
        prompts: at least one.
        start: None is the first prompted frame, or the last when going back.

    Raises:
        PromptError: the options exclude each other.
    """
    if reverse and both:
        raise PromptError("--reverse and --both exclude each other; --both goes back too")
    prompted = [said.frame for said in prompts]
    if start is None:
        start = max(prompted) if reverse else min(prompted)
    return Route(start, reverse, both, frames)


def follow(
    track: Track, prompts: Sequence[FramePrompt], route: Route
) -> Generator[TrackedFrame, None, None]:
    """Track a clip along a route, and give frame after frame.

    Points on a later frame of an object correct what was tracked there; all else is said at the
    start, so that every frame on the way knows of it.

    Raises:
        VideoError: a frame can't be read.
    """
    ahead = route.corrections(prompts)
    for said in prompts:
        if said not in ahead:
            tell(track, said)
    yield from go(track, ahead, route)
    if route.both and route.start > 0:
        yield from track.propagate(route.start - 1, reverse=True, frames=route.frames)


def go(track: Track, ahead: Sequence[FramePrompt], route: Route) -> Iterator[TrackedFrame]:
    """Track one way, correcting on the way."""
    here, left = route.start, route.frames
    for frame, group in groupby(ahead, key=lambda said: said.frame):
        gap = abs(frame - here)
        if left is not None and left <= gap:
            break
        for found in track.propagate(here, route.reverse, gap + 1):
            if found.frame != frame:  # that one is about to be corrected
                yield found
        for said in group:
            tell(track, said)
        here, left = frame, None if left is None else left - gap
    yield from track.propagate(here, route.reverse, left)


def tell(track: Track, said: FramePrompt) -> None:
    """Prompt a track."""
    prompt = said.prompt
    track.prompt(
        said.frame, prompt.obj, prompt.points, prompt.labels, box=prompt.box, mask=prompt.mask
    )

"""The clip engine of SAM 2: prompts on any frame, corrections, both directions."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import count as count_from
from itertools import islice, takewhile
from types import MappingProxyType
from typing import Any, NoReturn
from weakref import WeakSet

import numpy as np

from vkrt.arguments import flag, whole
from vkrt.engines.prompt import Ask, Prompt, check_id, read_prompt, tidy
from vkrt.engines.remembered import load_bank
from vkrt.engines.sam2_video import Encode
from vkrt.engines.story import Story, is_conditioning, joined
from vkrt.engines.track_settings import TrackSettings
from vkrt.engines.tracked import Finish, TrackedFrame
from vkrt.engines.tracker import Answer, Tracker, TrackerOptions
from vkrt.errors import BackendError, PromptError
from vkrt.media.frames import Frames
from vkrt.media.prefetch import prefetch
from vkrt.memory.history import History, Past
from vkrt.models.sam2.config import Sam2Config

__all__ = ["Track", "TrackSettings"]


class Track:
    """Track objects through a clip whose frames can be asked for by index.

    Attributes:
        settings: how.
    """

    def __init__(
        self,
        encode: Encode,
        tracker: Tracker,
        clip: Frames,
        config: Sam2Config,
        finish: Finish,
        settings: TrackSettings,
    ) -> None:
        self._encode = encode
        self._tracker = tracker
        self._clip = clip
        self._config = config
        self._finish = finish
        self.settings = settings
        self._stories: dict[int, Story] = {}
        self._features: OrderedDict[int, Mapping[str, Any]] = OrderedDict()
        # Every track of the same clip that is not closed.
        self._sharers: WeakSet[Track] = WeakSet((self,))

    @property
    def options(self) -> TrackerOptions:
        """Return how answers are chosen and remembered; they may be changed at any time."""
        return self._tracker.options

    @options.setter
    def options(self, options: TrackerOptions) -> None:
        self._tracker.options = options

    @property
    def count(self) -> int | None:
        """Return the number of frames, None where the source tells it only at its end."""
        return self._clip.count

    @property
    def objects(self) -> tuple[int, ...]:
        """Return the ids of the objects."""
        return tuple(self._stories)

    @property
    def stories(self) -> Mapping[int, Story]:
        """Return what is known of each object, by id: to be read, not to be changed."""
        return MappingProxyType(self._stories)

    def prompt(
        self,
        frame: int,
        obj: int,
        points: Any = None,
        labels: Any = None,
        box: Any = None,
        mask: Any = None,
        keep: bool = False,
    ) -> TrackedFrame:
        """Say what an object is on a frame, or what is wrong with it there.

        On a frame that was tracked already, the object's memories count as well. Prompts on other
        frames, given since, do not: they count from the next frame that is tracked.

        Args:
            frame: its index.
            obj, points, labels, box, mask: as in Prompt.
            keep: join the points to those that were given on this frame before.

        Returns:
            the masks of every object that was asked for or tracked on this frame.

        Raises:
            PromptError: the frame is beyond the clip, or the prompt does not fit.
        """
        frame = self._check_frame(frame)
        given = Prompt(check_id(obj), points, labels, box, mask)
        prompt, obj = given, given.obj
        story = self._stories.get(obj) or Story(History(self.settings.history))
        if flag("keep", keep, kind=PromptError) and frame in story.said:
            prompt = joined(story.said[frame], tidy(given))
        photo = self._clip.frame(frame)
        size = photo.shape[0], photo.shape[1]
        side, strict = self._config.image_size, self.settings.strict
        ask = self._as_said(story, frame, read_prompt(prompt, size, side, strict))
        features = self._see(frame)
        is_new = obj not in self._stories
        if is_new:
            self._tracker.add(obj)
        try:
            backwards = bool(story.reversed >> frame & 1)
            answer = self._answer(frame, features, {obj: ask}, {obj: story}, backwards)[obj]
        except BaseException:
            if is_new:
                self._tracker.remove(obj)
            raise
        self._stories[obj] = story
        story.said[frame] = prompt
        story.past.stage(frame, self._past_of(answer))
        # Other frames remember it only once tracking goes on; the bank is for what they remember.
        self._tracker.bank.forget(self._tracker.objects.index(obj), frame)
        if self.settings.clear_around_prompts:
            self._clear_around(obj, frame)
        return self._show(frame, size)

    def _as_said(self, story: Story, frame: int, ask: Ask) -> Ask:
        """Return a prompt with what this frame's past adds to it."""
        tracked = bool(story.tracked >> frame & 1)
        past = story.past.get(frame)
        refines = self.settings.refine and past is not None and ask.mask is None
        return replace(
            ask,
            earlier=past.logits if refines and past is not None else None,
            remember=tracked,
            conditioning=not tracked or self.settings.corrections_condition,
        )

    def propagate(
        self, start: int | None = None, reverse: bool = False, frames: int | None = None
    ) -> Iterator[TrackedFrame]:
        """Track every object from a frame on, and give frame after frame.

        Frames on which an object was prompted keep the answer that they have.

        Args:
            start: the first frame; None is the first prompted one, or the last when going back.
            reverse: go back in time.
            frames: how many frames to give; None goes to the end of the clip.

        Raises:
            PromptError: there is no object, an object has no prompt left, or start is beyond the
                clip.
        """
        self._settle()
        self._check_prompts()
        reverse = flag("reverse", reverse, kind=PromptError)
        if frames is not None:
            frames = whole("frames", frames, 0, sys.maxsize, kind=PromptError)
        if start is None:
            conditioning = [f for s in self._stories.values() for f in s.past.conditioning()]
            start = max(conditioning) if reverse else min(conditioning)
        return self._go(self._check_frame(start), reverse, frames)

    def _go(self, start: int, reverse: bool, frames: int | None) -> Iterator[TrackedFrame]:
        """Give the frames of propagate; the next ones are read while one is tracked."""
        order: Iterator[int] = iter(range(start, -1, -1)) if reverse else count_from(start)
        there = takewhile(self._clip.has, islice(order, frames))
        with prefetch(map(self._read, there)) as pictures:
            for frame, size, pixels in pictures:
                yield self._advance(frame, size, pixels, reverse)

    def _read(self, frame: int) -> tuple[int, tuple[int, int], np.ndarray]:
        """Return a frame's number, its size and the model's input of it."""
        photo = self._clip.frame(frame)
        return frame, (photo.shape[0], photo.shape[1]), self._to_input(frame)

    def _to_input(self, frame: int) -> np.ndarray:
        """Return the model's input of a frame."""
        threads = self._tracker.options.threads
        return self._clip.input(frame, self._config.image_size, threads)

    def _advance(
        self, frame: int, size: tuple[int, int], pixels: np.ndarray, reverse: bool
    ) -> TrackedFrame:
        """Track the objects that have no prompt on a frame, and show all."""
        self._settle()
        stories = {
            obj: story
            for obj, story in self._stories.items()
            if not is_conditioning(story.past.settled(frame))
        }
        if stories:
            features = self._see(frame, pixels)
            answers = self._answer(frame, features, {}, stories, reverse)
            for obj, answer in answers.items():
                stories[obj].past.put(frame, self._past_of(answer))
        for story in self._stories.values():
            story.pass_over(frame, reverse)
        return self._show(frame, size)

    def _settle(self) -> None:
        """Let tracking see the prompts that were given since it went on last."""
        for story in self._stories.values():
            story.past.settle()

    def _answer(
        self,
        frame: int,
        features: Mapping[str, Any],
        asks: Mapping[int, Ask],
        stories: Mapping[int, Story],
        reverse: bool,
    ) -> dict[int, Answer]:
        """Return what a frame gives for some objects; the bank has what they need for it."""
        memory = self._config.memory
        for obj, story in stories.items():
            row = self._tracker.objects.index(obj)
            load_bank(self._tracker, row, story.past, frame, reverse)
        span = min(self.count or memory.max_obj_ptrs, memory.max_obj_ptrs)
        return self._tracker.advance(frame, features, asks, list(stories), reverse, span)

    def _past_of(self, answer: Answer) -> Past:
        """Return what a frame gave for an object, on the host."""
        return Past(
            logits=answer.logits.copy(),
            score=answer.score,
            object_score=answer.object_score,
            memory=self._tracker.to_host(answer.memory),
            pointer=self._tracker.to_host(answer.pointer),
            conditioning=answer.conditioning,
        )

    def _show(self, frame: int, size: tuple[int, int]) -> TrackedFrame:
        """Return the masks of all objects that have an answer on a frame."""
        found = {obj: story.past.get(frame) for obj, story in self._stories.items()}
        known = {obj: past for obj, past in found.items() if past is not None}
        return self._finish.frame(
            frame,
            size,
            list(known),
            [past.logits for past in known.values()],
            [past.score for past in known.values()],
            [past.object_score for past in known.values()],
        )

    def _see(self, frame: int, pixels: np.ndarray | None = None) -> Mapping[str, Any]:
        """Return the encoded features of a frame; those of the last few are kept."""
        seen = self._features.pop(frame, None)
        if seen is None:
            seen = self._encode(self._to_input(frame) if pixels is None else pixels)
        self._features[frame] = seen
        while len(self._features) > self.settings.features:
            self._features.popitem(last=False)
        return self._features[frame]

    def clear(self, frame: int, obj: int, keep_answer: bool = False) -> None:
        """Take back what was said of an object on a frame, and what it led to there.

        Args:
            frame, obj: as in prompt.
            keep_answer: once tracking went on from the prompt, keep its mask as one that was
                tracked, until the frame is tracked again (as upstream does).

        Raises:
            PromptError: there is no such object, or nothing was said of it there.
        """
        story = self._story(obj)
        frame = whole("frame", frame, 0, sys.maxsize, kind=PromptError)
        if frame not in story.said:
            raise PromptError(
                f"object {obj} has no prompt on frame {frame}; it has some on {sorted(story.said)}"
            )
        del story.said[frame]
        if not keep_answer:
            self._forget(check_id(obj), frame)
            return
        if is_conditioning(story.past.settled(frame)):
            story.tracked &= ~(1 << frame)
        story.past.demote(frame)

    def remove(self, obj: int) -> None:
        """Remove an object and all that is known of it.

        Raises:
            PromptError: there is no such object.
        """
        self._story(obj)
        self._tracker.remove(check_id(obj))
        del self._stories[check_id(obj)]

    def forget(self, frame: int, obj: int) -> None:
        """Drop what an object left on a frame; its prompts are still said.

        Raises:
            PromptError: there is no such object.
        """
        story = self._story(obj)
        number = whole("frame", frame, 0, sys.maxsize, kind=PromptError)
        # A set of frames is a number with a bit for each: a far one would fill the memory.
        if number in story.past or story.tracked >> number & 1:
            self._forget(check_id(obj), number)

    def duplicate(self) -> Track:
        """Return a track of the same clip, with objects and memories of its own, as they are now.

        The clip is released once all of them are closed.
        """
        twin = Track.__new__(Track)
        twin.__dict__.update(self.__dict__)
        twin._tracker = self._tracker.duplicate()
        twin._stories = {obj: story.duplicate() for obj, story in self._stories.items()}
        twin._features = OrderedDict(self._features)
        self._sharers.add(twin)
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Track:
        return self.duplicate()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise BackendError(
            "a track can't be pickled, for its frames and memories are in this process alone: save "
            "masks (vkrt track) or embeddings (embedding.save), and track in the other process"
        )

    def reset(self) -> None:
        """Forget every object."""
        self._tracker.clear()
        self._stories.clear()

    def close(self) -> None:
        """Forget every object and release the clip."""
        self.reset()
        self._features.clear()
        self._sharers.discard(self)
        if not self._sharers:
            self._clip.close()

    def __enter__(self) -> Track:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _clear_around(self, obj: int, frame: int) -> None:
        """Drop what was tracked within reach of a prompted frame."""
        story = self._stories[obj]
        reach = self._config.memory.num_maskmem
        for other in list(story.past):
            past = story.past.get(other)
            if 0 < abs(other - frame) <= reach and past is not None and not past.conditioning:
                self._forget(obj, other)

    def _forget(self, obj: int, frame: int) -> None:
        """Drop what an object left on a frame."""
        story = self._stories[obj]
        story.past.forget(frame)
        story.tracked &= ~(1 << frame)
        self._tracker.bank.forget(self._tracker.objects.index(obj), frame)

    def _story(self, obj: int) -> Story:
        """Return the story of an object, or say that there is none."""
        obj = check_id(obj)
        if obj not in self._stories:
            raise PromptError(f"object {obj} is not tracked; there are {list(self._stories)}")
        return self._stories[obj]

    def _check_frame(self, frame: int) -> int:
        """Return a frame's number as int, or refuse one beyond the clip."""
        number = whole("frame", frame, -sys.maxsize, sys.maxsize, kind=PromptError)
        if number < 0 or not self._clip.has(number):
            raise PromptError(
                f"frame {number} is beyond the clip, which has {self.count} frames: "
                "give a number from 0 on"
            )
        return number

    def _check_prompts(self) -> None:
        """Refuse to track nothing, or an object of which nothing is said."""
        if not self._stories:
            raise PromptError("there is no object to track: prompt one on some frame first")
        for obj, story in self._stories.items():
            if not story.past.conditioning():
                raise PromptError(
                    f"object {obj} has no prompt left that conditions it: prompt or remove it"
                )

"""The streaming engine of SAM 2: live frames in, masks of every object out, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np

from vkrt.arguments import shown
from vkrt.engines.prompt import Ask, Prompt, check_id, read_prompt, says_nothing
from vkrt.engines.tracked import Finish, TrackedFrame
from vkrt.engines.tracker import Tracker
from vkrt.errors import BackendError, PromptError, VideoError
from vkrt.media.image import Photo, read_image, to_input
from vkrt.models.sam2.config import Sam2Config

__all__ = ["Encode", "Stream"]

# Gives the image encoder's device arrays of the model's input (3, S, S) float32, by port name.
Encode = Callable[[np.ndarray], Mapping[str, Any]]


class Stream:
    """Track objects through frames that come one by one, and of which none is kept.

    Attributes:
        frame: index of the next frame.
        size: height and width of the frames; None before the first.
    """

    def __init__(
        self, encode: Encode, tracker: Tracker, config: Sam2Config, finish: Finish
    ) -> None:
        self._encode = encode
        self._tracker = tracker
        self._config = config
        self._finish = finish
        self.frame = 0
        self.size: tuple[int, int] | None = None

    @property
    def objects(self) -> tuple[int, ...]:
        """Return the ids of the objects that are tracked."""
        return tuple(self._tracker.objects)

    @property
    def nbytes(self) -> int:
        """Return the bytes of the memory bank: so many an object, whatever the frames' number."""
        return self._tracker.bank.nbytes

    def step(self, frame: Photo, prompts: Iterable[Prompt] = ()) -> TrackedFrame:
        """Track every object on the next frame.

        A new id begins an object, on this frame alone. An id that is tracked already is corrected:
        its memories and what is said count together. After an error the stream is as it was
        before, so that the next frame goes on.

        Args:
            frame: (H, W, 3) uint8, a PIL image, a path or the bytes of a file; all of one size.
            prompts: what is said of objects on this frame, one Prompt an object; one of empty
                lists says nothing.

        Raises:
            PromptError: there is no object yet, or a prompt does not fit.
            ImageError: the frame can't be read.
            VideoError: it is of another size than those before it.
        """
        photo = read_image(frame)
        size = (photo.shape[0], photo.shape[1])
        if self.size is not None and self.size != size:
            height, width = self.size
            raise VideoError(
                f"frame {self.frame} is {size[1]}x{size[0]}, but the stream is {width}x{height}: "
                "resize it, or reset the stream"
            )
        asks = self._read(prompts, size)
        if not asks and not self.objects:
            raise PromptError("there is no object to track: give a prompt with a frame first")
        result = self._advance(photo, size, asks)
        self.frame, self.size = self.frame + 1, size
        return result

    def _read(self, prompts: Iterable[Prompt], size: tuple[int, int]) -> dict[int, Ask]:
        """Return the checked prompts by object."""
        asks: dict[int, Ask] = {}
        for prompt in listed(prompts):
            obj = check_id(prompt.obj)
            if says_nothing(prompt):
                continue
            ask = read_prompt(prompt, size, self._config.image_size)
            if obj in asks:
                raise PromptError(f"object {obj} has two prompts on one frame: join their points")
            known = obj in self._tracker.objects
            asks[obj] = replace(ask, remember=known, conditioning=True)
        return asks

    def _advance(
        self, photo: np.ndarray, size: tuple[int, int], asks: Mapping[int, Ask]
    ) -> TrackedFrame:
        """Return the frame; objects that begin on it are there only if it succeeds."""
        threads = self._tracker.options.threads
        features = self._encode(to_input(photo, self._config.image_size, threads=threads))
        new = [obj for obj in asks if obj not in self._tracker.objects]
        for obj in new:
            self._tracker.add(obj)
        try:
            answers = self._tracker.advance(
                self.frame,
                features,
                asks,
                self.objects,
                reverse=False,
                span=self._config.memory.max_obj_ptrs,
            )
        except BaseException:
            for obj in new:
                self._tracker.remove(obj)
            raise
        return self._finish.frame(
            self.frame,
            size,
            list(answers),
            [answer.logits for answer in answers.values()],
            [answer.score for answer in answers.values()],
            [answer.object_score for answer in answers.values()],
        )

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise BackendError(
            "a stream can't be copied or pickled, for its memories are in this process alone: save "
            "embeddings (embedding.save) or masks, and begin a stream in the other process"
        )

    def remove(self, obj: int) -> None:
        """Stop tracking an object, and give its memory back.

        Raises:
            PromptError: no such object is tracked.
        """
        known = check_id(obj)
        if known not in self._tracker.objects:
            raise PromptError(f"object {known} is not tracked; there are {list(self.objects)}")
        self._tracker.remove(known)

    def reset(self) -> None:
        """Forget every object and begin anew at frame 0."""
        self._tracker.clear()
        self.frame, self.size = 0, None


def listed(prompts: Iterable[Prompt]) -> list[Prompt]:
    """Return prompts as a list.

    Raises:
        PromptError: they are no prompts.
    """
    given = list(prompts) if isinstance(prompts, Iterable) else [prompts]
    for prompt in given:
        if not isinstance(prompt, Prompt):
            raise PromptError(f"prompts must be vkrt.Prompt, one an object, not {shown(prompt)}")
    return given

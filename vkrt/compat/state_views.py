"""What upstream's state tells of its objects under further keys, read from the engine.

By index of the object, and then by frame: point_inputs_per_obj, mask_inputs_per_obj,
output_dict_per_obj, temp_output_dict_per_obj and frames_tracked_per_obj. These are to be read; of
output_dict_per_obj frames may be deleted too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, NoReturn

import numpy as np

from vkrt.compat.errors import StateError
from vkrt.engines.prompt import read_prompt
from vkrt.engines.sam2_track import Track
from vkrt.engines.story import Story
from vkrt.media.prompts import PAD_LABEL
from vkrt.memory.history import Past

__all__ = ["FrameOutputs", "ObjectView", "views"]

CONDITIONING, OTHERS = "cond_frame_outputs", "non_cond_frame_outputs"


class ObjectView(Mapping[int, Any]):
    """Tell something of each object by its index, made when it is asked for."""

    def __init__(self, numbers: Sequence[int], tell: Callable[[int], Any]) -> None:
        self._numbers = numbers
        self._tell = tell

    def __getitem__(self, index: int) -> Any:
        if index not in range(len(self._numbers)):
            raise KeyError(index)
        return self._tell(self._numbers[index])

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self._numbers)))

    def __len__(self) -> int:
        return len(self._numbers)


class FrameOutputs(MutableMapping[int, dict[str, Any]]):
    """Tell what one object left on frames; to delete a frame forgets it."""

    def __init__(self, track: Track, number: int, conditioning: bool) -> None:
        self._track = track
        self._number = number
        self._conditioning = conditioning

    def _past(self, frame: int) -> Past | None:
        story = self._track.stories.get(self._number)
        past = None if story is None else story.past.get(frame)
        return past if past is not None and past.conditioning == self._conditioning else None

    def __getitem__(self, frame: int) -> dict[str, Any]:
        past = self._past(frame)
        if past is None:
            raise KeyError(frame)
        return output(past)

    def __setitem__(self, frame: int, value: Any) -> NoReturn:
        raise StateError(
            "what an object left on a frame can't be set: prompt it (add_new_mask) instead"
        )

    def __delitem__(self, frame: int) -> None:
        if self._past(frame) is None:
            raise KeyError(frame)
        self._track.forget(frame, self._number)

    def __iter__(self) -> Iterator[int]:
        story = self._track.stories.get(self._number)
        frames = [] if story is None else list(story.past)
        return (frame for frame in frames if self._past(frame) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def views(
    track: Track, numbers: Sequence[int], size: tuple[int, int], side: int
) -> dict[str, ObjectView]:
    """Return the views of a state by its keys.

    Args:
        track: the engine.
        numbers: of the objects, in the order of their indices.
        size: height and width of the frames.
        side: of the model's input.
    """

    def outputs(number: int) -> dict[str, Any]:
        return {
            CONDITIONING: FrameOutputs(track, number, conditioning=True),
            OTHERS: FrameOutputs(track, number, conditioning=False),
        }

    def points(number: int) -> dict[int, Any]:
        return prompts(track.stories.get(number), size, side)[0]

    def masks(number: int) -> dict[int, Any]:
        return prompts(track.stories.get(number), size, side)[1]

    def tracked(number: int) -> dict[int, dict[str, bool]]:
        return passed(track.stories.get(number))

    tell: dict[str, Callable[[int], Any]] = {
        "output_dict_per_obj": outputs,
        # Nothing waits here to be merged before tracking goes on.
        "temp_output_dict_per_obj": lambda number: {CONDITIONING: {}, OTHERS: {}},
        "point_inputs_per_obj": points,
        "mask_inputs_per_obj": masks,
        "frames_tracked_per_obj": tracked,
    }
    return {key: ObjectView(numbers, call) for key, call in tell.items()}


def output(past: Past) -> dict[str, Any]:
    """Return what an object left on a frame: tensors of a batch of one, as upstream keeps them."""
    import torch

    side = int(len(past.memory) ** 0.5)
    memory = np.ascontiguousarray(past.memory.T).reshape(1, -1, side, side)
    return {
        "maskmem_features": torch.from_numpy(memory),
        "maskmem_pos_enc": None,
        "pred_masks": torch.from_numpy(past.logits.copy())[None, None],
        "obj_ptr": torch.from_numpy(past.pointer.copy())[None],
        "object_score_logits": torch.tensor([[past.object_score]]),
        "iou_score": torch.tensor([[past.score]]),
    }


def prompts(
    story: Story | None, size: tuple[int, int], side: int
) -> tuple[dict[int, Any], dict[int, Any]]:
    """Return the points and the masks that were said of an object, by frame, for the model."""
    import torch

    points: dict[int, Any] = {}
    masks: dict[int, Any] = {}
    for frame, prompt in ({} if story is None else story.said).items():
        ask = read_prompt(prompt, size, side, strict=False)
        if ask.mask is not None:
            masks[frame] = torch.from_numpy(ask.mask)[None, None]
            continue
        said = ask.labels != PAD_LABEL
        points[frame] = {
            "point_coords": torch.from_numpy(ask.points[said])[None],
            "point_labels": torch.from_numpy(ask.labels[said])[None],
        }
    return points, masks


def passed(story: Story | None) -> dict[int, dict[str, bool]]:
    """Return the frames that tracking went over, each with its direction."""
    if story is None:
        return {}
    frames = (f for f in range(story.tracked.bit_length()) if story.tracked >> f & 1)
    return {frame: {"reverse": bool(story.reversed >> frame & 1)} for frame in frames}

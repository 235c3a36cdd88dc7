"""The state of a clip as upstream's code holds it: a dict of what user code asks for."""

from __future__ import annotations

import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from vkrt.arguments import is_whole, shown
from vkrt.compat.errors import ClipError, StateError, raising
from vkrt.compat.state_views import views
from vkrt.engines.sam2_track import Track
from vkrt.engines.story import Story
from vkrt.errors import BackendError, PromptError
from vkrt.media.frame_sources import SequenceFrames, list_pictures
from vkrt.media.frames import Frames
from vkrt.media.video import Clip, open_video

__all__ = ["FrameTensors", "VideoState", "open_clip"]

JPEG = {".jpg", ".jpeg"}
# Numbers of objects whose ids are none themselves count from here; nobody would choose them.
UNNUMBERED = -(2**62)


def open_clip(source: Clip | Frames) -> Frames:
    """Return the frames of a clip; of a folder with JPEG files these alone, as they are stored.

    Like upstream, it turns none of them as its EXIF says.

    They are as they are stored: upstream turns none as its EXIF says.

    Raises:
        ClipError: as vkrt.media.video.open_video raises a VideoError.
    """
    with raising(ClipError):
        if not isinstance(source, str | os.PathLike) or not os.path.isdir(source):
            return open_video(source)
        pictures = list_pictures(Path(source))
        photographs = [path for path in pictures if path.suffix.lower() in JPEG]
        paths = photographs or pictures
        return SequenceFrames(paths, str(source), upright=False, filter="bicubic")


class FrameTensors:
    """Give frames as the model's input, (3, S, S) float32, made when they are asked for."""

    def __init__(self, frames: Frames, side: int) -> None:
        self._frames = frames
        self._side = side

    def __len__(self) -> int:
        return self._frames.length()

    def __getitem__(self, index: int) -> Any:
        import torch

        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"there is no frame {index}; the clip has {len(self)}")
        return torch.from_numpy(self._frames.input(place, self._side))


class VideoState(dict[str, Any]):
    """Hold the tracking of one clip, and tell user code of it under upstream's keys.

    The keys are images, num_frames, video_height, video_width, device, storage_device,
    offload_video_to_cpu, offload_state_to_cpu, obj_ids, obj_id_to_idx, obj_idx_to_id, and those of
    vkrt.compat.state_views. What upstream keeps under other keys is in the engine.

    Ids of objects are what user code gives: anything that can be the key of a dict. The engine
    knows each by a number.

    copy.deepcopy gives a state of the same clip that goes its own way.

    Attributes:
        track: the engine underneath.
        size: height and width of the frames.
    """

    def __init__(self, track: Track, frames: Frames, image_size: int, **known: Any) -> None:
        first = frames.frame(0)
        self.track = track
        self.size = first.shape[0], first.shape[1]
        self._side = image_size
        self._numbers: dict[Hashable, int] = {}
        super().__init__(
            images=FrameTensors(frames, image_size),
            num_frames=frames.length(),
            video_height=self.size[0],
            video_width=self.size[1],
            cached_features={},
            constants={},
            **known,
        )
        self.refresh()

    def __missing__(self, key: str) -> Any:
        raise KeyError(f"this state has no {key!r}: it has {', '.join(self)}")

    def __deepcopy__(self, memo: dict[int, Any]) -> VideoState:
        """Return a state of the same clip with objects, prompts and memories of its own."""
        twin = VideoState.__new__(VideoState)
        memo[id(self)] = twin
        twin.track = self.track.duplicate()
        twin.size, twin._side = self.size, self._side
        twin._numbers = dict(self._numbers)
        twin.update(self)
        twin.refresh()
        return twin

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise BackendError(
            "the state of a clip can't be pickled, for its frames and memories are in this process "
            "alone: save masks or embeddings (embedding.save), and call init_state and prompt "
            "again in the other process"
        )

    def number(self, obj: Hashable) -> int:
        """Return the engine's number of an object, or a free one for a new object.

        Raises:
            PromptError: the id can't be the key of a dict.
        """
        try:
            known = self._numbers.get(obj)
        except TypeError:
            raise PromptError(
                f"an object's id must be hashable, such as a number or a text, not {shown(obj)}"
            ) from None
        if known is not None:
            return known
        used = set(self._numbers.values())
        if is_whole(obj) and abs(int(obj)) < -UNNUMBERED and int(obj) not in used:  # type: ignore[call-overload]
            return int(obj)  # type: ignore[call-overload]
        return next(n for n in range(UNNUMBERED, 0) if n not in used)

    def register(self, obj: Hashable) -> int:
        """Return the index of an object, which is there from now on, with or without prompts."""
        plain = int(obj) if isinstance(obj, np.integer) else obj
        self._numbers.setdefault(plain, self.number(obj))
        self.refresh()
        index: int = self["obj_id_to_idx"][plain]
        return index

    def drop(self, obj: Hashable) -> None:
        """Forget an object's id; the indices behind it move up by one."""
        self._numbers.pop(obj, None)
        self.refresh()

    def clear_objects(self) -> None:
        """Forget every object."""
        self.track.reset()
        self._numbers.clear()
        self.refresh()

    def refresh(self) -> None:
        """Tell of the objects that there are now."""
        objects = list(self._numbers)
        self["obj_ids"] = objects
        self["obj_id_to_idx"] = {obj: row for row, obj in enumerate(objects)}
        self["obj_idx_to_id"] = dict(enumerate(objects))
        self.update(views(self.track, list(self._numbers.values()), self.size, self._side))

    def story(self, obj: Hashable) -> Story | None:
        """Return what is known of an object, None where nothing was said of it.

        Raises:
            PromptError: the id can't be the key of a dict.
        """
        return self.track.stories.get(self.number(obj))

    def logits(self, frame: int) -> dict[Hashable, np.ndarray]:
        """Return (h, w) float32 of every object that has an answer on a frame, by id."""
        stories = self.track.stories
        known = {obj: stories[n] for obj, n in self._numbers.items() if n in stories}
        found = {obj: story.past.get(frame) for obj, story in known.items()}
        return {obj: past.logits for obj, past in found.items() if past is not None}

    def first_prompted(self) -> int:
        """Return the earliest frame that conditions others; there must be one."""
        return min(f for story in self.track.stories.values() for f in story.past.conditioning())

    def check_prompted(self) -> None:
        """Refuse to track an object of which nothing was said.

        Raises:
            StateError: there is one.
        """
        for obj in self["obj_ids"]:
            if self.story(obj) is None:
                raise StateError(f"object {shown(obj)} has no prompt: prompt or remove it first")

    def close(self) -> None:
        """Forget every object and release the clip; upstream has no such call."""
        self.track.close()
        self._numbers.clear()
        self.refresh()

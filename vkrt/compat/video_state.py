"""The state of a clip as upstream's code holds it: a dict of what user code asks for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from vkrt.engines.prompt import check_id
from vkrt.engines.sam2_track import Track
from vkrt.engines.story import Story
from vkrt.media.frame_sources import SequenceFrames, list_pictures
from vkrt.media.frames import Frames
from vkrt.media.image import to_input
from vkrt.media.video import Clip, open_video

__all__ = ["FrameTensors", "VideoState", "open_clip"]

JPEG = {".jpg", ".jpeg"}


def open_clip(source: Clip | Frames) -> Frames:
    """Return the frames of a clip; of a folder with JPEG files these alone, as upstream does.

    Raises:
        VideoError: as vkrt.media.video.open_video.
    """
    if not isinstance(source, str | os.PathLike) or not os.path.isdir(source):
        return open_video(source)
    pictures = list_pictures(Path(source))
    photographs = [path for path in pictures if path.suffix.lower() in JPEG]
    return SequenceFrames(photographs or pictures, str(source))


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
        return torch.from_numpy(to_input(self._frames.frame(place), self._side))


class VideoState(dict[str, Any]):
    """Hold the tracking of one clip, and tell user code of it under upstream's keys.

    The keys are images, num_frames, video_height, video_width, device, storage_device,
    offload_video_to_cpu, offload_state_to_cpu, obj_ids, obj_id_to_idx and obj_idx_to_id. What
    upstream keeps of memories under other keys is in the engine.

    Attributes:
        track: the engine underneath.
        size: height and width of the frames.
    """

    def __init__(self, track: Track, frames: Frames, image_size: int, **known: Any) -> None:
        first = frames.frame(0)
        self.track = track
        self.size = first.shape[0], first.shape[1]
        super().__init__(
            images=FrameTensors(frames, image_size),
            num_frames=frames.length(),
            video_height=self.size[0],
            video_width=self.size[1],
            **known,
        )
        self.refresh()

    def __missing__(self, key: str) -> Any:
        raise KeyError(f"this state has no {key!r}: it has {', '.join(self)}")

    def refresh(self) -> None:
        """Tell of the objects that there are now."""
        objects = list(self.track.objects)
        self["obj_ids"] = objects
        self["obj_id_to_idx"] = {obj: row for row, obj in enumerate(objects)}
        self["obj_idx_to_id"] = dict(enumerate(objects))

    def story(self, obj: int) -> Story | None:
        """Return what is known of an object, None where there is no such.

        Raises:
            PromptError: it is no whole number.
        """
        check_id(obj)
        return self.track.stories.get(obj)

    def logits(self, frame: int) -> dict[int, np.ndarray]:
        """Return (h, w) float32 of every object that has an answer on a frame, by id."""
        found = {obj: story.past.get(frame) for obj, story in self.track.stories.items()}
        return {obj: past.logits for obj, past in found.items() if past is not None}

    def first_prompted(self) -> int:
        """Return the earliest frame that conditions others; there must be one."""
        return min(f for story in self.track.stories.values() for f in story.past.conditioning())

    def close(self) -> None:
        """Forget every object and release the clip; upstream has no such call."""
        self.track.close()
        self.refresh()

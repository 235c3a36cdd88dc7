"""What `vkrt track` writes: label maps in a folder, an overlay clip, tracks as JSON."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from vkrt.cli.track_prompts import FramePrompt
from vkrt.errors import OutputError

if TYPE_CHECKING:
    import numpy as np

    from vkrt.engines.prompt import Prompt
    from vkrt.engines.tracked import TrackedFrame
    from vkrt.media.frames import Frames

__all__ = ["Target", "Write", "open_outputs", "plan_targets"]

KINDS = {".mp4": "overlay", ".gif": "overlay", ".json": "tracks"}
LABELS = range(1, 256)
# Frames a second of an overlay where the clip states none, as a folder of pictures.
RATE = 25.0
SLOWEST = 0.01

Write: TypeAlias = "Callable[[TrackedFrame], None]"


class Target(NamedTuple):
    """Name an output.

    Attributes:
        path: of the file or folder.
        kind: "masks", "overlay" or "tracks".
    """

    path: Path
    kind: str


def plan_targets(
    outs: Sequence[str],
    default: str | None,
    inputs: Sequence[Path],
    prompts: Sequence[FramePrompt],
) -> list[Target]:
    """Return what the texts of --out name.

    Args:
        default: what to write if nothing is named, or None.
        inputs: files and folders that must stay.

    Raises:
        OutputError: an ending is of no kind, a name is an input's or given twice, or pictures
            can't hold the objects' ids.
    """
    targets = [Target(Path(text), kind_of(text)) for text in outs or ([default] if default else [])]
    taken = {path.resolve() for path in inputs}
    for target in targets:
        resolved = target.path.resolve()
        if resolved in taken:
            raise OutputError(f"{target.path} is also an input or another output; name another")
        taken.add(resolved)
    wrong = sorted({said.prompt.obj for said in prompts}.difference(LABELS))
    for target in targets:
        if target.kind == "masks" and wrong:
            raise OutputError(
                f"{target.path} can't hold object {wrong[0]}: pictures have labels from 1 to 255; "
                "number the objects so, or write a .json"
            )
    return targets


def kind_of(text: str) -> str:
    """Return what kind of output a name asks for.

    Raises:
        OutputError: it ends in something else.
    """
    path = Path(text)
    if text.endswith(("/", os.sep)) or path.is_dir() or not path.suffix:
        return "masks"
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise OutputError(
            f"--out {text} must end in / (a folder of PNGs), {', '.join(KINDS)}, to say what it is"
        )
    return kind


@contextmanager
def open_outputs(
    targets: Sequence[Target], clip: Frames, prompts: Sequence[FramePrompt]
) -> Iterator[Write]:
    """Give a function that writes a frame to every output.

    All get their names when the block is left, and none of them if that is by an error.

    Raises:
        OutputError: one can't be written.
        VideoError: PyAV is missing.
    """
    with ExitStack() as stack:
        writes = [OPENERS[kind](stack, path, clip, prompts) for path, kind in targets]

        def write(found: TrackedFrame) -> None:
            for each in writes:
                each(found)

        yield write


def open_masks(
    stack: ExitStack, path: Path, _clip: Frames, _prompts: Sequence[FramePrompt]
) -> Write:
    """Return what writes a frame's label map."""
    from vkrt.cli.mask_folder import MaskFolder
    from vkrt.media.labels import label_map

    folder = stack.enter_context(MaskFolder(path))
    return lambda found: folder.write(found.frame, label_map(found.masks, found.obj_ids))


def open_tracks(
    stack: ExitStack, path: Path, clip: Frames, _prompts: Sequence[FramePrompt]
) -> Write:
    """Return what writes a frame's objects as JSON."""
    from vkrt.media.tracks import TracksWriter

    file = stack.enter_context(TracksWriter(path, clip.fps))
    return lambda found: file.write(
        found.frame, found.obj_ids, found.masks, found.scores, found.object_scores
    )


def open_overlay(
    stack: ExitStack, path: Path, clip: Frames, prompts: Sequence[FramePrompt]
) -> Write:
    """Return what draws a frame's masks and prompts over it."""
    from vkrt.media.clips import FASTEST, FASTEST_GIF, ClipWriter

    fps = clip.fps or RATE
    # A GIF can't show 60 frames a second: leaving every other one out keeps the pace.
    every = math.ceil(fps / (FASTEST_GIF if path.suffix.lower() == ".gif" else FASTEST))
    file = stack.enter_context(ClipWriter(path, max(fps / every, SLOWEST)))
    said: defaultdict[int, list[Prompt]] = defaultdict(list)
    for each in prompts:
        said[each.frame].append(each.prompt)
    count = 0

    def write(found: TrackedFrame) -> None:
        nonlocal count
        if count % every == 0:
            photo = clip.frame(found.frame)
            file.write(draw(photo, found, said.get(found.frame, [])))
        count += 1

    return write


def draw(photo: np.ndarray, found: TrackedFrame, prompts: Sequence[Prompt]) -> np.ndarray:
    """Return a frame (H, W, 3) uint8 with its masks and prompts drawn in."""
    import numpy as np

    from vkrt.media.overlay import draw_overlay

    picture = draw_overlay(
        photo,
        found.masks,
        points=[point for prompt in prompts for point in prompt.points or ()],
        labels=[label for prompt in prompts for label in prompt.labels or ()],
        boxes=[prompt.box for prompt in prompts if prompt.box is not None],
    )
    return np.asarray(picture)


OPENERS: dict[str, Callable[[ExitStack, Path, Frames, Sequence[FramePrompt]], Write]] = {
    "masks": open_masks,
    "overlay": open_overlay,
    "tracks": open_tracks,
}

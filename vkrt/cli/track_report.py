"""What `vkrt track` says at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vkrt.cli.output import print_table
from vkrt.cli.track_outputs import Target

if TYPE_CHECKING:
    from vkrt.engines.sam2_image import Segmenter
    from vkrt.engines.tracked import TrackedFrame
    from vkrt.media.frames import Frames

__all__ = ["Tally", "describe", "show"]


@dataclass
class Tally:
    """Count what was tracked.

    Attributes:
        frames: how many.
        first, last: the lowest and the highest number.
        objects: ids.
        seconds: from the first prompt to the last frame written.
    """

    frames: int = 0
    first: int | None = None
    last: int | None = None
    objects: set[int] = field(default_factory=set)
    seconds: float = 0.0

    def add(self, found: TrackedFrame) -> None:
        """Count a frame; they come in order."""
        self.frames += 1
        self.first = found.frame if self.first is None else self.first
        self.last = found.frame
        self.objects.update(found.obj_ids)


def describe(
    sam: Segmenter, source: Frames, tally: Tally, targets: Sequence[Target], loading: float
) -> dict[str, Any]:
    """Return what was done, as JSON has it."""
    height, width = source.size or (None, None)
    return {
        "model": sam.name,
        "backend": sam.backend,
        "device": sam.device,
        "clip": {
            "file": source.name,
            "width": width,
            "height": height,
            "frames": source.count,
            "fps": source.fps and round(source.fps, 3),
        },
        "frames": tally.frames,
        "first": tally.first,
        "last": tally.last,
        "objects": sorted(tally.objects),
        "frames_per_second": round(tally.frames / tally.seconds, 3),
        "files": [{"file": str(path), "kind": kind} for path, kind in targets],
        "ms": {"load": round(loading * 1000, 1), "track": round(tally.seconds * 1000, 1)},
    }


def show(report: dict[str, Any]) -> None:
    """Print the report for a person."""
    clip = report["clip"]
    print(f"{clip['file']}: {clip['width']}x{clip['height']}, {report['model']}", end="")
    print(f" on {report['device']} ({report['backend']})")
    files = "\n".join(each["file"] for each in report["files"])
    row = [
        f"{report['frames']} ({report['first']} to {report['last']})",
        ", ".join(map(str, report["objects"])),
        f"{report['frames_per_second']:.3g}",
        files,
    ]
    print_table(["frames", "objects", "frames/s", "files"], [row], 3)

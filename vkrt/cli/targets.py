"""Where a command's pictures go: named, and known to be writable, before any long work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vkrt.errors import OutputError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Targets", "plan", "save_picture"]

PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


@dataclass(frozen=True)
class Targets:
    """Name the files that a segmentation writes.

    Attributes:
        masks: one per mask, object by object; none if masks are not to be written.
        overlay: the photo with its masks and prompts, or None.
    """

    masks: tuple[Path, ...]
    overlay: Path | None

    def check(self, inputs: Sequence[Path]) -> None:
        """Refuse what can't be written, and what would replace an input.

        Raises:
            OutputError: naming the file.
        """
        from vkrt.media.files import check_writable

        taken = {path.resolve() for path in inputs}
        for path in filter(None, (*self.masks, self.overlay)):
            if path.resolve() in taken:
                raise OutputError(f"{path} is also an input or another output; name another file")
            taken.add(path.resolve())
            check_writable(path)


def plan(
    photo: Path,
    out: Path | None,
    overlay: Path | None,
    objects: int,
    proposals: int,
    quiet: bool,
) -> Targets:
    """Return the files of a segmentation of `photo`.

    Args:
        out: the mask; with several objects or proposals, NAME.png stands for NAME-0.png,
            NAME-1.png, ..., and with several of both for NAME-0-0.png (object, proposal), ...
        overlay: the picture to look at.
        quiet: with neither of them, write nothing rather than PHOTO.mask.png here.

    Raises:
        OutputError: a name has an ending that is no picture format.
    """
    if out is None and overlay is None and not quiet:
        out = Path(f"{photo.stem}.mask.png")
    if out is not None and out.suffix.lower() != ".png":
        raise OutputError(f"--out {out} must end in .png, which keeps a mask exactly")
    if overlay is not None and overlay.suffix.lower() not in PICTURES:
        raise OutputError(f"--overlay {overlay} must end in one of {', '.join(PICTURES)}")
    if out is None:
        return Targets((), overlay)
    endings = [""]
    for count in (objects, proposals):
        if count > 1:
            endings = [f"{ending}-{index}" for ending in endings for index in range(count)]
    return Targets(tuple(out.with_stem(out.stem + ending) for ending in endings), overlay)


def save_picture(path: Path, picture: Image) -> None:
    """Write a picture in the format of its name, whole or not at all.

    Raises:
        OutputError: the file can't be written.
    """
    from vkrt.media.files import write_atomically

    kind = PICTURES[path.suffix.lower()]
    write_atomically(path, lambda file: picture.save(file, kind))

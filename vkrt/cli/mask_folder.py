"""A folder of label maps: under its name only once it is whole."""

from __future__ import annotations

import contextlib
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from vkrt.errors import OutputError
from vkrt.temporary import TemporaryFolder, claim, explained, keep_beside

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np

__all__ = ["MaskFolder"]


class MaskFolder:
    """Write a palette PNG for each frame, 00000.png and so on, in a `with` block.

    The files are in a temporary folder until the block is left without an error; then that one
    gets the name, or its files move into the empty folder that is there. Nobody else can write
    into the same folder meanwhile.

    Args:
        path: a new folder, or one that holds nothing but hidden files.

    Raises:
        OutputError: it holds something, is no folder, or may not be made; where another program
            filled it meanwhile, the files stay beside it, where the message says.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path
        with explained(path), ExitStack() as stack:
            self._target = find_folder(path)
            stack.enter_context(claim(self._target))
            # An empty folder may be a volume of its own, or the one that the caller stands in.
            self._is_there = self._target.exists()
            parent = self._target if self._is_there else self._target.parent
            self._part = TemporaryFolder(parent)
            self._claimed = stack.pop_all()

    def write(self, frame: int, labels: np.ndarray) -> None:
        """Write the label map (H, W) uint8 of a frame.

        Raises:
            OutputError: the disk is full.
        """
        from vkrt.media.labels import write_labels

        write_labels(self._part.path / f"{frame:05d}.png", labels)

    def _finish(self) -> None:
        """Give the files their place, or another one if something else is there by now."""
        try:
            find_folder(self.path)
            if self._is_there:
                move_files(self._part.path, self._target)
            else:
                self._part.path.rename(self._target)
        except OutputError as error:
            # A folder that was there may be a volume of its own.
            place = self._target / "masks" if self._is_there else self._target
            kept = keep_beside(self._part.path, place)
            raise OutputError(f"{error}; what was tracked is in {kept}") from None

    def __enter__(self) -> MaskFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                with explained(self.path):
                    self._finish()
        finally:
            self._part.remove()
            self._claimed.close()


def move_files(source: Path, target: Path) -> None:
    """Move every file of a folder into another one, or none of them."""
    moved: list[Path] = []
    try:
        for file in sorted(source.iterdir()):
            moved.append(file.rename(target / file.name))
    except BaseException:
        for file in moved:
            with contextlib.suppress(OSError):
                file.unlink()
        raise


def find_folder(path: str | os.PathLike[str]) -> Path:
    """Return the real path of a folder, once it is clear that it can be made or filled."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        if any(not entry.name.startswith(".") for entry in target.iterdir()):
            raise OutputError(f"folder {path} is not empty; remove it or name a new one")
    elif target.exists():
        raise OutputError(f"{path} is a file; name a new folder for the masks")
    elif not target.parent.is_dir():
        raise OutputError(f"folder {target.parent} does not exist; make it or choose another")
    return target

"""Output that grows over time: under its name only once it is whole."""

from __future__ import annotations

import contextlib
import os
from types import TracebackType
from typing import BinaryIO

from vkrt.media.files import find_target
from vkrt.temporary import TemporaryFile, explained

__all__ = ["PendingOutput"]


class PendingOutput:
    """Write to a temporary file in the same folder, renamed to `path` on closing.

    Leaving a `with` block by an error drops the file; one that was at `path` stays as it was.

    Attributes:
        path: as given.
        stream: the temporary file, for reading back too.

    Raises:
        OutputError: the folder is missing, or `path` is not a plain file or may not be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path
        with explained(path):
            self._target = find_target(path)
            self._temporary = TemporaryFile(self._target.parent)
            self.stream: BinaryIO = os.fdopen(self._temporary.descriptor, "wb")
        self._open = True

    @property
    def is_open(self) -> bool:
        """Tell whether more can be written."""
        return self._open

    def close(self) -> None:
        """Finish the file and give it its name; doing it twice is fine.

        Raises:
            OutputError: the disk is full, or the name is taken by a folder meanwhile.
        """
        if not self._open:
            return
        try:
            with explained(self.path):
                self._finish()
                self.stream.flush()
                os.fsync(self.stream.fileno())
                self.stream.close()
                os.replace(self._temporary.path, self._target)
            self._open = False
        finally:
            self.discard()

    def discard(self) -> None:
        """Drop what was written, unless it was closed."""
        if self._open:
            self._open = False
            self._abandon()
            with contextlib.suppress(OSError):
                self.stream.close()
            self._temporary.remove()

    def _finish(self) -> None:
        """Write what comes last."""

    def _abandon(self) -> None:
        """Release what else is open."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self.discard()

"""The error kinds of vkrt: each message is one line that says what was wrong and what to do."""

from __future__ import annotations

__all__ = [
    "BackendError",
    "CheckpointError",
    "DownloadError",
    "GenerationCancelled",
    "GenerationError",
    "ImageError",
    "OutputError",
    "PromptError",
    "UnknownModelError",
    "VideoError",
    "VkrtError",
]


# Beyond this, a message is cut: no terminal shows more, and a log should not hold a whole file.
LONGEST = 2000
# What would move a terminal's cursor, or ring its bell.
ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}


class VkrtError(Exception):
    """Base of every error that a caller's input or machine can cause.

    Its message is one line, whatever file names or errors of other packages are quoted in it.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(one_line(arg) if isinstance(arg, str) else arg for arg in args))


def one_line(text: str) -> str:
    """Return a text as one printable line: no line breaks, control characters or half characters.

    Runs of white space become one blank, the rest of what can't be shown is escaped, and a text of
    more than 2,000 characters loses its middle.
    """
    line = " ".join(text.split()).translate(ESCAPES)
    line = line.encode("utf-8", "backslashreplace").decode("utf-8")
    half = LONGEST // 2
    return line if len(line) <= LONGEST else f"{line[: half - 5]} ... {line[-half:]}"


class UnknownModelError(VkrtError, ValueError):
    """Name a model, hub id or config that the catalog does not hold."""


class CheckpointError(VkrtError, ValueError):
    """Give weights that are damaged, hostile, or of another model."""


class DownloadError(VkrtError, OSError):
    """Ask for a file that is neither here nor reachable."""


class ImageError(VkrtError, ValueError):
    """Give a picture that can't be read or is beyond the stated limits."""


class VideoError(VkrtError, ValueError):
    """Give a clip or a frame of one that can't be read or does not fit the others."""


class PromptError(VkrtError, ValueError):
    """Give points, boxes or masks that do not fit the picture, or a text that is no prompt."""


class BackendError(VkrtError, RuntimeError):
    """Ask for a backend, device or precision that this machine does not have."""


class OutputError(VkrtError, OSError):
    """Ask for an output that can't be written."""


class GenerationError(VkrtError, RuntimeError):
    """Ask for pictures that this model, or this machine's memory, can't make."""


class GenerationCancelled(VkrtError, RuntimeError):
    """Stop between two steps because the caller asked for it."""

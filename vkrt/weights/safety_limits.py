"""Bounds on what a weights file may claim, and how its names are shown in messages."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "MAX_HEADER_BYTES",
    "MAX_INDEX_BYTES",
    "MAX_MEGAPIXELS",
    "MAX_PHOTO_BYTES",
    "MAX_TENSORS",
    "MOST_MEGAPIXELS",
    "listed",
    "shown",
]

# The largest models that vkrt runs hold some thousand tensors.
MAX_TENSORS = 20_000
# A safetensors header takes some 100 bytes a tensor, but trainers add megabytes of notes.
MAX_HEADER_BYTES = 16 * 1024**2
# A zip directory, a pickle or a shard index takes up to 200 bytes a tensor, and is parsed into
# Python objects some twenty times its size.
MAX_INDEX_BYTES = 4 * 1024**2

# Of a photo or frame that is still to be decoded, unless VKRT_MAX_MEGAPIXELS says otherwise. The
# largest cameras have 150; three bytes a pixel, and some copies.
MAX_MEGAPIXELS = 100
# What that limit can be raised to, and the limit of what is in memory already.
MOST_MEGAPIXELS = 1000
# Of a photo that is read from a stream that can't go back, and so has to be held.
MAX_PHOTO_BYTES = 1024**3

MAX_SHOWN = 5


def shown(text: object, limit: int = 120) -> str:
    """Return a name from a file so that it fits into one line of a message."""
    name = str(text)
    name = name if name.isprintable() else ascii(name)[1:-1]
    return name if len(name) <= limit else name[: limit - 3] + "..."


def listed(names: Iterable[str]) -> str:
    """Return the first few names and a count of the rest."""
    every = list(names)
    rest = len(every) - MAX_SHOWN
    few = ", ".join(shown(name) for name in every[:MAX_SHOWN])
    return f"{few} and {rest} more" if rest > 0 else few

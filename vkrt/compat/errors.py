"""Errors that are also what upstream raises in their place, so that ported `except`s catch them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vkrt.errors import CheckpointError, ImageError, PromptError, VideoError, VkrtError

__all__ = [
    "ClipError",
    "PictureError",
    "StateError",
    "UnfitWeightsError",
    "raising",
]


class StateError(PromptError, RuntimeError):
    """Raised when a call comes before what it needs: a picture, an object or a prompt."""


class UnfitWeightsError(CheckpointError, RuntimeError):
    """Raised when a checkpoint can't be loaded into the model."""


class ClipError(VideoError, RuntimeError):
    """Raised when a clip has no frames, or one of them can't be read."""


class PictureError(ImageError, NotImplementedError):
    """Raised when a picture is of a form that is not taken."""


@contextmanager
def raising(kind: type[VkrtError]) -> Iterator[None]:
    """Raise an error of a kind in place of one of its vkrt base; errors of others pass.

    Args:
        kind: one of the classes above.
    """
    base = kind.__mro__[1]
    try:
        yield
    except kind:
        raise
    except VkrtError as error:
        if not isinstance(error, base):
            raise
        raise kind(*error.args) from error.__cause__

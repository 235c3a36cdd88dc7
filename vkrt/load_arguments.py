"""The arguments of vkrt.load and of an export, checked before anything is looked up."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vkrt.arguments import path, shown, text, whole
from vkrt.errors import BackendError, CheckpointError, UnknownModelError
from vkrt.models.sam2.config import MAX_IMAGE_SIZE

__all__ = ["check_sources", "refuse_others"]

# Components of Stable Diffusion 3.5 that a file of its own may bring, also as diffusers calls them.
ENCODERS = ("clip_l", "clip_g", "t5", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
# Characters of a model's name or path.
LONGEST_NAME = 4096


def check_sources(
    model: Any,
    checkpoint: Any = None,
    image_size: Any = None,
    precision: Any = "auto",
    encoders: Any = None,
    tokenizers: Any = None,
    control_model: Any = None,
) -> None:
    """Refuse what can't say which model to load from which files.

    Raises:
        UnknownModelError: model is no name or path, or image_size no side of an input.
        CheckpointError: one of the others is no path, or names no component.
        BackendError: precision is neither text nor a mapping of texts.
    """
    check_model(model)
    for name, value in (("checkpoint", checkpoint), ("control_model", control_model)):
        if value is not None:
            path(name, value, kind=CheckpointError)
    if image_size is not None:
        whole("image_size", image_size, 32, MAX_IMAGE_SIZE, kind=UnknownModelError)
    check_precision(precision)
    if encoders is not None:
        check_paths("encoders", encoders, ENCODERS)
    if isinstance(tokenizers, Mapping):
        check_paths("tokenizers", tokenizers, None)
    elif tokenizers is not None:
        path("tokenizers", tokenizers, kind=CheckpointError)


def check_model(model: Any) -> None:
    """Refuse what is neither the name of a model nor a path."""
    if isinstance(model, os.PathLike):
        path("model", model, kind=UnknownModelError)
        return
    if not text("model", model, kind=UnknownModelError, longest=LONGEST_NAME).strip():
        raise UnknownModelError("model is empty; give a name that `vkrt models` lists, or a path")
    try:
        Path(model).exists()
    except (OSError, ValueError):
        raise UnknownModelError(f"model can't be {shown(model)}, which no file is named") from None


def check_precision(precision: Any) -> None:
    """Refuse what names no precisions; which there are is told where they are used."""
    if isinstance(precision, Mapping):
        for stage, value in precision.items():
            text("precision's stage", stage, kind=BackendError, longest=LONGEST_NAME)
            text("precision", value, kind=BackendError, longest=LONGEST_NAME)
    else:
        text("precision", precision, kind=BackendError, longest=LONGEST_NAME)


def check_paths(name: str, given: Any, known: tuple[str, ...] | None) -> None:
    """Refuse what is no mapping from components to paths."""
    if not isinstance(given, Mapping):
        raise CheckpointError(f"{name} must map a component to its file, not {shown(given)}")
    for part, value in given.items():
        if not isinstance(part, str) or (known and part not in known):
            names = f" of {', '.join(known)}" if known else ""
            raise CheckpointError(f"{name} must be{names}, not {shown(part)}")
        # None leaves a component out that the checkpoint has.
        if value is not None or name != "encoders":
            path(f"{name}' {part}", value, kind=CheckpointError)


def refuse_others(makes: str, family: str, **given: Any) -> None:
    """Refuse arguments that a model of another family takes, which would change nothing here.

    Args:
        makes: what this model does: "segments" or "makes pictures".
        family: which models take the arguments: "makes pictures" or "segments".
        given: the arguments by name; None was not given.

    Raises:
        BackendError: one was given.
    """
    for name, value in given.items():
        if value is not None:
            raise BackendError(
                f"{name} is of a model that {family}, and this one {makes}: leave {name} out"
            )

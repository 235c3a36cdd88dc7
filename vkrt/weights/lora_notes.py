"""What a LoRA file says of itself beside its tensors: how strong the trainer meant it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open

from vkrt.errors import CheckpointError
from vkrt.weights.bounded_json import parse_json
from vkrt.weights.checkpoint import is_safetensors
from vkrt.weights.folder import find_parts
from vkrt.weights.lora_names import WRAPPER
from vkrt.weights.safety_limits import MAX_INDEX_BYTES, shown

__all__ = ["Notes", "read_notes"]

# diffusers puts the settings of peft there, one after the other: "transformer.lora_alpha".
METADATA = "lora_adapter_metadata"
# peft writes them beside its weights.
SETTINGS, SETTINGS_OF = "adapter_config.json", "adapter_model"

# peft takes the names in a pattern for regular expressions; one from a file is never run.
PLAIN_NAME = re.compile(r"\^?[\w.\-]+")


@dataclass(frozen=True)
class Notes:
    """Hold peft's settings, for the whole file or under the names of its models."""

    settings: Mapping[str, Any] = field(default_factory=dict)

    def strength(self, stem: str, rank: int | None) -> float:
        """Return what to multiply a layer's matrix by where its tensors do not say so.

        Formula: alpha / rank, or alpha / sqrt(rank) with peft's use_rslora; 1 without notes.

        Args:
            stem: the layer's name in the file.
            rank: of its factors; None takes the noted one.

        Raises:
            CheckpointError: the notes can't be understood.
        """
        settings, path = self.settings_of(stem)
        alpha = number(settings, "alpha_pattern", path, "lora_alpha", "alpha")
        rank = rank or int(number(settings, "rank_pattern", path, "r") or 0)
        if alpha is None or rank < 1:
            return 1.0
        return alpha / (math.sqrt(rank) if settings.get("use_rslora") is True else rank)

    def settings_of(self, stem: str) -> tuple[Mapping[str, Any], str]:
        """Return the settings that concern a layer, and its path as they know it."""
        model, _, path = stem.partition(".")
        own = {
            key.removeprefix(f"{model}."): value
            for key, value in self.settings.items()
            if key.startswith(f"{model}.")
        }
        return (own, path.removeprefix(WRAPPER)) if own else (self.settings, bare(stem))


def bare(stem: str) -> str:
    """Return a layer's name behind peft's wrapper, wherever that stands."""
    return stem.rpartition(WRAPPER)[2]


def number(settings: Mapping[str, Any], pattern: str, path: str, *keys: str) -> float | None:
    """Return a setting of one layer, or of all of them, None if there is neither.

    Raises:
        CheckpointError: it is no finite number, or the pattern is no list of names.
    """
    own = settings.get(pattern) or {}
    if not isinstance(own, dict) or not all(map(PLAIN_NAME.fullmatch, own)):
        raise CheckpointError(
            f"{pattern} has more than plain names, which is not supported: "
            "save the LoRA with an alpha for each weight"
        )
    for name, value in own.items():
        if path == name.removeprefix("^") or path.endswith(f".{name}"):
            return checked(pattern, value)
    for key in keys:
        if settings.get(key) is not None:
            return checked(key, settings[key])
    return None


def checked(key: str, value: Any) -> float:
    """Return a setting as a number."""
    # Beyond this Python can't make a float of an integer.
    sound = isinstance(value, int | float) and abs(value) < 2**53
    if isinstance(value, bool) or not sound:
        raise CheckpointError(f"{key} is {shown(value)}, no number: get an undamaged LoRA")
    return float(value)


def read_notes(path: Path) -> Notes:
    """Return what a LoRA file or folder says of itself; nothing is fine too.

    Raises:
        CheckpointError: the notes are damaged.
    """
    for file in find_parts(path).files:
        settings = file.parent / SETTINGS
        if file.name.startswith(SETTINGS_OF) and settings.is_file():
            if settings.stat().st_size > MAX_INDEX_BYTES:
                raise damaged(settings)
            return Notes(parsed(settings.read_bytes(), settings))
        if is_safetensors(file):
            with safe_open(str(file), framework="pt", device="cpu") as opened:
                text = (opened.metadata() or {}).get(METADATA)
            if text is not None:
                return Notes(parsed(text, file))
    return Notes()


def parsed(text: str | bytes, path: Path) -> dict[str, Any]:
    """Return the settings in a piece of JSON."""
    try:
        content = parse_json(text)
    except ValueError:
        raise damaged(path) from None
    if not isinstance(content, dict):
        raise damaged(path)
    return content


def damaged(path: Path) -> CheckpointError:
    """Return the error for notes that can't be read."""
    return CheckpointError(
        f"the settings of the LoRA in {shown(path, 1000)} can't be read: get it again"
    )

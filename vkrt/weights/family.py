"""Which family of models a name or a checkpoint is of, by its headers alone: imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

from vkrt.models.sd35.known import FILES, HUB_IDS, KNOWN

__all__ = ["find_sd35", "holds_sd35"]

CUSTOM = "custom"
# What a file of the transformer has, under official names and those of diffusers.
MARKS = ("joint_blocks.", "transformer_blocks.0.attn.add_q_proj")
FOLDERS = ("model_index.json", "transformer")


def find_sd35(name: str) -> str | None:
    """Return the catalog name of Stable Diffusion 3.5 for that name, a hub id or a file name.

    Case, "_" and "-" make no difference; "custom" is one too. None is for any other.
    """
    key = plain(name)
    for known in KNOWN:
        aliases = (known, HUB_IDS[known], FILES[known], FILES[known].removesuffix(".safetensors"))
        if key in map(plain, aliases):
            return known
    return CUSTOM if key == CUSTOM else None


def plain(name: str) -> str:
    """Return a name so that case, "_" and "-" make no difference."""
    return name.strip().lower().replace("_", "-")


def holds_sd35(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file or folder looks like Stable Diffusion 3.5; nothing else is checked."""
    place = Path(path)
    if place.is_dir():
        return any((place / name).exists() for name in FOLDERS)
    if place.suffix != ".safetensors" or not place.is_file():
        return False
    from safetensors import safe_open

    try:
        with safe_open(str(place), framework="numpy") as file:
            return any(mark in name for name in file.keys() for mark in MARKS)  # noqa: SIM118
    except Exception:
        # Whoever reads it for good says what is wrong with it.
        return False

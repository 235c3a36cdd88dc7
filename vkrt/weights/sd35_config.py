"""Recognise a model of Stable Diffusion 3.5 by what its components hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from vkrt.errors import CheckpointError, UnknownModelError
from vkrt.models.sd35.config import CLIP_G, CLIP_L, MmditConfig, Sd35Config
from vkrt.models.sd35.known import KNOWN
from vkrt.weights.family import find_sd35
from vkrt.weights.sd35_shapes import (
    ShapeTable,
    clip_config,
    mmdit_config,
    t5_config,
    vae_config,
)
from vkrt.weights.sd35_sources import Component

__all__ = ["CUSTOM", "described", "known_name", "recognise"]

CUSTOM = "custom"
TURBO = "turbo"

READERS = {
    "transformer": ("mmdit", mmdit_config),
    "clip_l": ("clip_l", clip_config),
    "clip_g": ("clip_g", clip_config),
    "t5": ("t5", t5_config),
    "vae": ("vae", vae_config),
}


def known_name(name: str) -> str:
    """Return the catalog name for that name, a hub id or a file name; "custom" stays.

    Raises:
        UnknownModelError: there is no such model; the message names the closest ones.
    """
    found = find_sd35(name)
    if found is None:
        close = get_close_matches(name.lower(), list(KNOWN), n=3, cutoff=0.4) or list(KNOWN)
        raise UnknownModelError(f"unknown model {name!r}; did you mean {', '.join(close)}?")
    return found


def recognise(
    components: Mapping[str, Component], wanted: str | None, checkpoint: Path
) -> tuple[str, Sd35Config]:
    """Return the catalog name and the config of a model; both are "custom" for other shapes.

    Args:
        components: what the checkpoint has; the transformer at least.
        wanted: the name asked for, or None. It alone tells Large Turbo from Large, which have one
            shape; without it the name of the file does.
        checkpoint: its path.

    Raises:
        CheckpointError: it is another model than the wanted one, or its components do not fit
            each other.
    """
    configs: dict[str, Any] = {}
    for kind, (field, read) in READERS.items():
        if kind in components:
            component = components[kind]
            configs[field] = read(ShapeTable(kind, component.shapes, component.settings))
    name = choose(configs["mmdit"], wanted, checkpoint)
    default = KNOWN.get(name) or Sd35Config(configs["mmdit"])
    config = replace(default, **configs)
    check_together(config, components)
    return name, config


def choose(mmdit: MmditConfig, wanted: str | None, checkpoint: Path) -> str:
    """Return which model a transformer is of."""
    matching = [name for name, config in KNOWN.items() if config.mmdit == mmdit]
    if wanted is not None and wanted not in (matching or [CUSTOM]):
        held = described(matching[0] if matching else CUSTOM, Sd35Config(mmdit))
        raise CheckpointError(
            f"this checkpoint holds {held}, but {wanted} was asked for: "
            f"load it without a name, or give a checkpoint of {wanted}"
        )
    if wanted is not None or not matching:
        return wanted or CUSTOM
    # The cache of the hub names a folder above the file.
    names = [checkpoint.name, *(p for p in checkpoint.parts if p.startswith("models--"))]
    is_turbo = any(TURBO in part.lower() for part in names)
    return next((name for name in matching if (TURBO in name) == is_turbo), matching[0])


def described(name: str, config: Sd35Config) -> str:
    """Return a model as a message names it."""
    if name != CUSTOM:
        return name
    return f"a model of {config.mmdit.depth} blocks of {config.mmdit.dim} channels"


def check_together(config: Sd35Config, components: Mapping[str, Component]) -> None:
    """Compare the widths at which the components meet.

    Raises:
        CheckpointError: they differ.
    """
    clips = {"clip_l": (config.clip_l, CLIP_G), "clip_g": (config.clip_g, CLIP_L)}
    for kind, (clip, other) in clips.items():
        if kind in components and (clip.dim, clip.layers) == (other.dim, other.layers):
            raise CheckpointError(
                f"{kind} is the other CLIP ({clip.layers} layers of {clip.dim} channels): "
                "exchange the files of clip_l and clip_g"
            )
    mmdit, held = config.mmdit, components.keys()
    pooled = config.clip_l.projection_dim + config.clip_g.projection_dim
    needs = {
        "clip_l and clip_g": ({"clip_l", "clip_g"}, pooled, mmdit.pooled_dim),
        "t5": ({"t5"}, config.t5.dim, mmdit.context_dim),
        "vae": ({"vae"}, config.vae.latent_channels, mmdit.channels),
    }
    for who, (kinds, given, taken) in needs.items():
        if kinds <= held and given != taken:
            raise CheckpointError(
                f"{who} give{'' if ' and ' in who else 's'} {given} channels, but this "
                f"transformer takes {taken}: give those of one model"
            )

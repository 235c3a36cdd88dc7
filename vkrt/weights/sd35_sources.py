"""Find which file holds which component of Stable Diffusion 3.5, and under which names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from vkrt.errors import CheckpointError
from vkrt.models.sd35.known import ENCODER_FILES
from vkrt.weights.bounded_json import parse_json
from vkrt.weights.extra_parts import split_off, warn_left_out
from vkrt.weights.family import family_of, named_pipeline
from vkrt.weights.safetensors_file import open_checked
from vkrt.weights.safety_limits import MAX_INDEX_BYTES, listed, shown
from vkrt.weights.scaled_fp8 import MARKER, without_scales
from vkrt.weights.sd35_names import is_diffusers
from vkrt.weights.tensor_index import Entry, Scale, read_entries
from vkrt.weights.wrapped_names import prefixes_before

__all__ = ["COMPONENTS", "FOLDERS", "TOKENIZERS", "Component", "find_components"]

# What a ControlNet's file says of its condition.
CONTROL_TYPE = "control_type"
CONTROLS = ("blur", "canny", "depth")

# The folders of a pipeline that diffusers saved.
FOLDERS = {
    "transformer": "transformer",
    "clip_l": "text_encoder",
    "clip_g": "text_encoder_2",
    "t5": "text_encoder_3",
    "vae": "vae",
    "controlnet": "controlnet",
}
COMPONENTS = tuple(FOLDERS)
TOKENIZERS = {"clip_l": "tokenizer", "clip_g": "tokenizer_2", "t5": "tokenizer_3"}

# What the names of a component start with in a file that holds several, then in one of its own.
PREFIXES = {
    "transformer": ("model.diffusion_model.", "diffusion_model."),
    "clip_l": ("text_encoders.clip_l.transformer.", "transformer."),
    "clip_g": ("text_encoders.clip_g.transformer.", "transformer."),
    "t5": ("text_encoders.t5xxl.transformer.", "transformer."),
    "vae": ("first_stage_model.", "vae."),
    "controlnet": ("control_model.", "controlnet."),
}
# A file of several has no ControlNet.
HELD_TOGETHER = ("transformer", "clip_l", "clip_g", "t5", "vae")
# Counters and scales that some programs save too and no encoder uses.
UNUSED = re.compile(r"(^|\.)(position_ids|logit_scale)$")
# What single files hold and the model does not use: the pooled embedding of CLIP-L is the one
# before its projection, and a ControlNet embeds patches as the model it leads.
LEFT_OUT: dict[str, tuple[str, ...]] = {
    "clip_l": ("text_projection.",),
    "controlnet": ("x_embedder.", CONTROL_TYPE),
}
# Parts of the models that a component is taken from, which are left out with a word: what their
# names start with, and what they are.
OTHER_PARTS: dict[str, dict[str, str]] = {
    "clip_l": {"vision_model.": "vision tower", "visual_projection.": "vision tower"},
    "clip_g": {"vision_model.": "vision tower", "visual_projection.": "vision tower"},
    "t5": {"decoder.": "decoder", "lm_head.": "decoder"},
    "vae": {"loss.": "training loss", "model_ema.": "running average"},
    "transformer": {},
}
# The same in a file of several components.
OTHER_MODELS = {
    "conditioner.": "conditioner",
    "cond_stage_model.": "conditioner",
    "model_ema.": "running average",
    "optimizer.": "optimizer",
    "loss.": "training loss",
}
# What the names of a component in a file of its own start with, behind any prefix.
BEGINNINGS = {
    "transformer": ("joint_blocks.", "transformer_blocks."),
    "clip_l": ("text_model.",),
    "clip_g": ("text_model.",),
    "t5": ("encoder.block.",),
    "vae": ("decoder.conv_in.",),
}
# Names that some files of a component have in place of the usual ones.
ALIASES = {
    "controlnet": [
        (r"^t_embedder\.mlp\.0\.", "time_text_embed.timestep_embedder.linear_1."),
        (r"^t_embedder\.mlp\.2\.", "time_text_embed.timestep_embedder.linear_2."),
        (r"^y_embedder\.mlp\.0\.", "time_text_embed.text_embedder.linear_1."),
        (r"^y_embedder\.mlp\.2\.", "time_text_embed.text_embedder.linear_2."),
    ],
    "t5": [(r"^encoder\.embed_tokens\.", "shared.")],
}


@dataclass(frozen=True)
class Component:
    """Say where the tensors of one component are.

    Attributes:
        kind: one of COMPONENTS.
        origin: the file or folder.
        entries: its tensors by name, without the prefix that they have in a file of several.
        settings: its config.json; {} where there is none.
        control: of a ControlNet: "blur", "canny", "depth", or None if it does not say.
        scales: what scaled tensors are to be multiplied by, by their names.
        left_out: how many tensors of which other part were left out.
    """

    kind: str
    origin: Path
    entries: Mapping[str, Entry]
    settings: Mapping[str, Any] = field(default_factory=dict)
    control: str | None = None
    scales: Mapping[str, Scale] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)

    def scale_of(self, name: str) -> Scale | None:
        """Return what a tensor is to be multiplied by, None where it is not scaled."""
        return self.scales.get(name)

    @cached_property
    def is_diffusers(self) -> bool:
        """Return whether its tensors have the names of diffusers."""
        return is_diffusers(self.kind, self.entries)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor."""
        return {name: entry.shape for name, entry in self.entries.items()}


def find_components(
    checkpoint: Path, given: Mapping[str, Path | None]
) -> tuple[dict[str, Component], list[str]]:
    """Return the components that are there, and the names of tensors that are of none.

    Args:
        checkpoint: a file with the transformer, with or without the other components; a folder
            that diffusers saved, or one with the file in it. Text encoders are also found in the
            folder "text_encoders" beside a file, where the official repositories keep them.
        given: paths of single components, which go before what the checkpoint holds; None leaves
            a component out.

    Raises:
        CheckpointError: as read_tensors, or there is no transformer.

    Warns:
        RuntimeWarning: names the parts of other models that were left out.
    """
    named_pipeline(checkpoint)
    found, others = in_checkpoint(checkpoint)
    for kind, place in (beside(checkpoint) | dict(given)).items():
        if place is not None and (kind in given or kind not in found):
            found[kind] = component_of(kind, place)
    unwanted = {kind for kind, place in given.items() if place is None}
    found = {kind: component for kind, component in found.items() if kind not in unwanted}
    if "transformer" not in found:
        raise CheckpointError(
            f"{shown(checkpoint, 1000)} holds no transformer of Stable Diffusion 3.5: give its "
            ".safetensors file or a folder that diffusers saved"
        )
    unknown, left = split_off(dict.fromkeys(others), other_model)
    for component in found.values():
        left |= {f"{component.kind}'s {part}": n for part, n in component.left_out.items()}
    warn_left_out(checkpoint, left)
    return found, list(unknown)


def other_model(name: str) -> str | None:
    """Return which known part of other models a tensor of no component is of."""
    return next((part for start, part in OTHER_MODELS.items() if name.startswith(start)), None)


def in_checkpoint(checkpoint: Path) -> tuple[dict[str, Component], list[str]]:
    """Return the components of the checkpoint itself, and the names of tensors of none."""
    if (checkpoint / FOLDERS["transformer"]).is_dir():
        folders = {kind: checkpoint / name for kind, name in FOLDERS.items()}
        # A ControlNet beside the pipeline is used only when it is asked for.
        return {
            kind: component_of(kind, folder)
            for kind, folder in folders.items()
            if folder.is_dir() and kind != "controlnet"
        }, []
    entries = read_entries(checkpoint)
    if not any(name.startswith(PREFIXES["transformer"]) for name in entries):
        prefix = prefix_of("transformer", entries)
        others = [name for name in entries if not name.startswith(prefix)]
        return {"transformer": component_in("transformer", checkpoint, entries)}, others
    check_transformer(checkpoint, entries)
    found, rest = {}, dict(entries)
    for kind in HELD_TOGETHER:
        prefix = known_prefix(kind, rest)
        own = {name.removeprefix(prefix): e for name, e in rest.items() if name.startswith(prefix)}
        if prefix and own:
            found[kind] = tidied(kind, checkpoint, own)
            rest = {name: e for name, e in rest.items() if not name.startswith(prefix)}
    return found, [name for name in rest if not (UNUSED.search(name) or MARKER.search(name))]


def known_prefix(kind: str, names: Iterable[str]) -> str:
    """Return the usual prefix that the names of a component have in this file, "" for none."""
    every = list(names)
    starts = (p for p in PREFIXES[kind] if any(name.startswith(p) for name in every))
    return next(starts, "")


def prefix_of(kind: str, names: Iterable[str]) -> str:
    """Return what the names of a component start with, "" where they are bare.

    In a file of its own any prefix may be there.
    """
    every = list(names)
    unusual = prefixes_before(every, BEGINNINGS.get(kind, ()))
    return known_prefix(kind, every) or next(iter(unusual), "")


def check_transformer(path: Path, entries: Mapping[str, Entry]) -> None:
    """Refuse a file of something else, before all its names count as unexpected."""
    has_blocks = any(mark in name for name in entries for mark in BEGINNINGS["transformer"])
    family = family_of(entries, parts=not has_blocks)
    if family is not None:
        raise CheckpointError(f"{shown(path, 1000)} is {family}")
    if not has_blocks:
        raise CheckpointError(
            f"{shown(path, 1000)} holds no transformer of Stable Diffusion 3.5 but "
            f"{listed(sorted(entries))}: give its .safetensors file, or a folder of diffusers"
        )


def component_of(kind: str, path: Path) -> Component:
    """Return a component from a file or folder of its own, or from a file of several."""
    return component_in(kind, path, read_entries(path))


def component_in(kind: str, path: Path, entries: Mapping[str, Entry]) -> Component:
    """Return a component among the tensors of a file or folder."""
    if kind == "transformer":
        check_transformer(path, entries)
    prefix = prefix_of(kind, entries)
    own = {name.removeprefix(prefix): e for name, e in entries.items() if name.startswith(prefix)}
    return tidied(kind, path, own)


def tidied(kind: str, path: Path, entries: Mapping[str, Entry]) -> Component:
    """Return a component under its usual names, without what nothing uses."""
    settings = settings_of(path)
    silent = LEFT_OUT.get(kind, ()) if not settings else ()
    parts = OTHER_PARTS.get(kind, {})
    plain, scales = without_scales(path, entries)
    own, left = split_off(
        plain, lambda name: next((parts[s] for s in parts if name.startswith(s)), None)
    )
    named: dict[str, Entry] = {}
    for name, entry in own.items():
        if UNUSED.search(name) or name.startswith(silent):
            continue
        usual = usual_name(kind, name)
        # An alias beside the usual name is a second copy.
        if usual == name or usual not in entries:
            named[usual] = entry
    scales = {usual_name(kind, name): scale for name, scale in scales.items()}
    control = control_of(path, entries) if kind == "controlnet" else None
    return Component(kind, path, named, settings, control, scales, left)


def usual_name(kind: str, name: str) -> str:
    """Return the name of a tensor that some files call otherwise."""
    for pattern, replacement in ALIASES.get(kind, ()):
        name = re.sub(pattern, replacement, name)
    return name


def control_of(path: Path, entries: Mapping[str, Entry]) -> str | None:
    """Return which of CONTROLS a ControlNet is made for: what it says, or its name."""
    said = entries.get(CONTROL_TYPE)
    if said is not None:
        return control_said(said)
    return next((control for control in CONTROLS if control in path.name.lower()), None)


def control_said(entry: Entry) -> str | None:
    """Return the condition that a ControlNet's file names by its number."""
    try:
        with open_checked(entry.path, "numpy") as file:
            number = int(file.get_tensor(entry.key).flatten()[0])
    except (CheckpointError, SafetensorError, TypeError, ValueError, IndexError, OverflowError):
        return None
    return CONTROLS[number] if 0 <= number < len(CONTROLS) else None


def settings_of(folder: Path) -> dict[str, Any]:
    """Return config.json of a folder; {} where there is none.

    Raises:
        CheckpointError: it is no JSON object.
    """
    file = folder / "config.json"
    if not file.is_file():
        return {}
    try:
        if file.stat().st_size > MAX_INDEX_BYTES:
            raise ValueError("it is too large")
        content = parse_json(file.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it is no object")
    except (ValueError, OSError):
        raise CheckpointError(
            f"{shown(file, 1000)} can't be read as settings: get the folder again"
        ) from None
    return content


def beside(checkpoint: Path) -> dict[str, Path]:
    """Return the encoder files that lie beside a checkpoint as in its official repository."""
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    found = {}
    for kind, names in ENCODER_FILES.items():
        files = [folder / name for name in names if (folder / name).is_file()]
        if files:
            found[kind] = files[0]
    return found

"""Find SAM 2 in a checkpoint that holds more, or less, than the whole model."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from vkrt import catalog
from vkrt.errors import CheckpointError, DownloadError
from vkrt.weights.checkpoint import read_tensors
from vkrt.weights.extra_parts import split_off, warn_left_out
from vkrt.weights.family import family_of
from vkrt.weights.hub import pull
from vkrt.weights.safety_limits import listed, shown
from vkrt.weights.sam2_names import to_official
from vkrt.weights.wrapped_names import prefixes_before

__all__ = ["completed", "own_tensors", "parts_in"]

Tensors = Mapping[str, Tensor]

# By what SAM 2 is found under any prefix: the whole of it, then parts of it.
WHOLE = ("image_encoder.trunk.", "vision_encoder.backbone.")
PARTIAL = (
    *("sam_mask_decoder.", "sam_prompt_encoder.", "image_encoder.neck.", "vision_encoder.neck."),
    *("memory_attention.", "memory_encoder.", "mask_decoder.", "prompt_encoder."),
)
# What the whole model has at least; a fine-tune may hold some of these alone, each whole.
NEEDED = ("image_encoder.trunk.", "image_encoder.neck.", "sam_prompt_encoder.", "sam_mask_decoder.")
MODULES = (*NEEDED, "memory_attention.", "memory_encoder.")
# What a module is saved from by itself, without its name.
BARE = (*MODULES, "image_encoder.")

# Parts of larger models and of training, by a step of their names.
EXTRAS = frozenset(
    {
        *("vision_tower", "vision_model", "visual_projection", "language_model", "lm_head"),
        *("text_model", "text_encoder", "text_projection", "text_hidden_fcs", "mm_projector"),
        *("multi_modal_projector", "embed_tokens", "logit_scale", "discriminator", "lpips"),
        *("criterion", "loss", "loss_fn", "losses", "perceptual_loss"),
        *("metrics", "train_metrics", "val_metrics", "test_metrics"),
    }
)
# These only outside of SAM 2's own names.
OUTSIDE = EXTRAS | {"layers", "initted", "step"}
# What a running average is called by.
AVERAGE = ("ema", "average", "averaged", "swa", "shadow")


def own_tensors(tensors: Tensors, path: Path | str) -> dict[str, Tensor]:
    """Return SAM 2's tensors under official names, without the prefix that they have.

    Known parts of other models are left out; what is not known stays, to be refused by name. Of
    a model and its running average the average is taken, if it has all the tensors.

    Raises:
        CheckpointError: there is more than one SAM 2, or a model of another family.

    Warns:
        RuntimeWarning: something was left out.
    """
    prefixes = prefixes_before(tensors, WHOLE) or prefixes_of_parts(tensors)
    if not prefixes:
        return to_official(tensors)
    prefix = chosen(prefixes, tensors)
    others = [other for other in prefixes if other != prefix]

    def part_of(name: str) -> str | None:
        # The longest prefix that a name has is the one that it is of.
        owner = max((p for p in prefixes if name.startswith(p)), key=len, default=None)
        if owner in others:
            return owner.rstrip(".") or "the weights without their average"
        steps = name.removeprefix(prefix).split(".")[:3]
        inside = owner is not None
        known = EXTRAS.intersection(steps[:1]) if inside else OUTSIDE.intersection(steps)
        return min(known, default=None)

    kept, left = split_off(tensors, part_of)
    named = {name.removeprefix(prefix): tensor for name, tensor in kept.items()}
    if len(named) < len(kept):
        raise CheckpointError(
            f"this checkpoint has names with {prefix} and without it: save one model to a file"
        )
    warn_left_out(path, left)
    return to_official(named)


def prefixes_of_parts(names: Iterable[str]) -> list[str]:
    """Return what names of parts of SAM 2 start with.

    Raises:
        CheckpointError: they are of another family of models, parts of which are called alike.
    """
    family = family_of(names)
    if family is not None:
        raise CheckpointError(f"this checkpoint is {family}")
    return prefixes_before(names, PARTIAL)


def chosen(prefixes: list[str], tensors: Iterable[str]) -> str:
    """Return the prefix of the model to take, "" where names have none."""
    if len(prefixes) < 2:
        return prefixes[0] if prefixes else ""
    averages = [prefix for prefix in prefixes if is_average(prefix)]
    plain = [prefix for prefix in prefixes if prefix not in averages]
    if len(averages) != 1 or len(plain) != 1:
        raise CheckpointError(
            f"this checkpoint holds {len(prefixes)} models ({listed(map(repr, prefixes))}): "
            "save one to a file"
        )
    (average,), (trained,) = averages, plain
    of_average = {name.removeprefix(average) for name in tensors if name.startswith(average)}
    of_trained = {
        name.removeprefix(trained)
        for name in tensors
        if name.startswith(trained) and not name.startswith(average)
    }
    marked = {name for name in of_trained if name.startswith((*WHOLE, *PARTIAL))}
    return average if marked <= of_average else trained


def is_average(prefix: str) -> bool:
    """Tell the prefix of a running average."""
    words = prefix.rstrip(".").replace("_", ".").split(".")
    return not set(AVERAGE).isdisjoint(words)


def parts_in(names: Iterable[str]) -> list[str]:
    """Return the modules of SAM 2 that official names are of."""
    every = list(names)
    return [part for part in MODULES if any(name.startswith(part) for name in every)]


def completed(
    tensors: dict[str, Tensor], wanted: catalog.Model | None, cache: Path | None, path: Path | str
) -> dict[str, Tensor]:
    """Return the tensors of a whole model: a part of one gets the rest of the model's own weights.

    Args:
        tensors: under official names.
        wanted: the model asked for; without one nothing is added.
        cache: folder of downloads.
        path: where they are from, for messages.

    Raises:
        CheckpointError: a module is there in part, or the model's own weights are not here.

    Warns:
        RuntimeWarning: says which tensors are from where.
    """
    held = parts_in(tensors)
    if wanted is None or not tensors or held[: len(NEEDED)] == list(NEEDED):
        return tensors
    if "image_encoder.trunk." in held and "sam_mask_decoder." in held:
        # Most of a model is no fine-tune of a part: what lacks is an error.
        return tensors
    try:
        base = pull(wanted, cache, offline=True)
    except DownloadError as error:
        if not held:
            return tensors
        raise CheckpointError(
            f"this checkpoint holds {named(held)} alone, and the rest of {wanted.name} is not "
            f"here: {error}"
        ) from None
    rest = to_official(read_tensors(base))
    own = as_module(tensors, rest) if not held else tensors
    held = parts_in(own)
    if not held:
        return tensors
    lacking = [name for name in rest if name.startswith(tuple(held)) and name not in own]
    if lacking:
        raise CheckpointError(
            f"this checkpoint holds {named(held)} alone, and of that lacks {listed(lacking)}: "
            "save the whole module, or the whole model"
        )
    warnings.warn(
        f"{shown(path, 1000)} holds {named(held)} alone: the rest is that of {shown(base, 1000)}",
        RuntimeWarning,
        stacklevel=2,
    )
    return rest | own


def as_module(tensors: dict[str, Tensor], rest: Tensors) -> dict[str, Tensor]:
    """Return tensors of one module, saved by itself, under their names in the whole model."""
    for part in BARE:
        if all(f"{part}{name}" in rest for name in tensors):
            return {f"{part}{name}": tensor for name, tensor in tensors.items()}
    return tensors


def named(parts: Iterable[str]) -> str:
    """Return modules as a message names them."""
    return " and ".join(part.rstrip(".") for part in parts)

"""Upstream's hydra overrides: the few that change what a prediction is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vkrt.errors import UnknownModelError

__all__ = ["IMAGE", "VIDEO", "read_overrides"]

# These describe postprocessing or training and change nothing that vkrt does.
IGNORED = (
    "dynamic_multimask_stability_delta=0.05",
    "dynamic_multimask_stability_thresh=0.98",
    "binarize_mask_from_pts_for_mem_enc=true",
)
BOOLEANS = {"true": True, "false": False}


def truth(value: str) -> bool:
    """Return what true or false says.

    Raises:
        ValueError: it is neither.
    """
    if value.lower() not in BOOLEANS:
        raise ValueError(value)
    return BOOLEANS[value.lower()]


# What each override that is known takes.
IMAGE: Mapping[str, Callable[[str], Any]] = {
    "image_size": int,
    "dynamic_multimask_via_stability": truth,
}
VIDEO: Mapping[str, Callable[[str], Any]] = {
    **IMAGE,
    "fill_hole_area": int,
    "non_overlap_masks": truth,
    "clear_non_cond_mem_around_input": truth,
    "add_all_frames_to_correct_as_cond": truth,
    "max_cond_frames_in_attn": int,
}


def read_overrides(
    overrides: list[str], known: Mapping[str, Callable[[str], Any]] = IMAGE
) -> dict[str, Any]:
    """Return the values that overrides set, by name.

    Args:
        overrides: such as "++model.image_size=512".
        known: IMAGE or VIDEO: what each override that there may be takes.

    Raises:
        UnknownModelError: one that vkrt does not know, or a value that can't be.
    """
    found: dict[str, Any] = {}
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        name = key.rsplit(".", 1)[-1]
        if f"{name}={value}" in IGNORED:
            continue
        try:
            found[name] = known[name](value)
        except (KeyError, ValueError):
            raise UnknownModelError(
                f"override {override!r} is not known; vkrt takes model.NAME=VALUE with true or "
                f"false or a whole number for {', '.join(known)}"
            ) from None
    return found

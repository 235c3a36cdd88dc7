"""Upstream's hydra overrides: the few that change what a prediction is."""

from __future__ import annotations

from typing import Any

from vkrt.errors import UnknownModelError

__all__ = ["read_overrides"]

# These describe postprocessing or training and change nothing that vkrt's image path does.
IGNORED = ("dynamic_multimask_stability_delta=0.05", "dynamic_multimask_stability_thresh=0.98")
BOOLEANS = {"true": True, "false": False}


def read_overrides(overrides: list[str]) -> dict[str, Any]:
    """Return image_size and dynamic_multimask_via_stability where overrides set them.

    Args:
        overrides: such as "++model.image_size=512".

    Raises:
        UnknownModelError: one that vkrt does not know, or a value that can't be.
    """
    found: dict[str, Any] = {}
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        name = key.rsplit(".", 1)[-1]
        if f"{name}={value}" in IGNORED:
            continue
        if name == "image_size" and value.isdigit():
            found[name] = int(value)
        elif name == "dynamic_multimask_via_stability" and value.lower() in BOOLEANS:
            found[name] = BOOLEANS[value.lower()]
        else:
            raise UnknownModelError(
                f"override {override!r} is not known; vkrt takes model.image_size=N and "
                "dynamic_multimask_via_stability=true|false"
            )
    return found

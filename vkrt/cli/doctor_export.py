"""`vkrt doctor`: what becomes of checkpoints here: PyTorch at once, a bundle later, or why not."""

from __future__ import annotations

from typing import Any

__all__ = ["describe_export", "look_at_exports", "show_refused"]

WAYS = {
    "auto": "PyTorch at once; vkrt.load exports behind a model that is in use for a minute, "
    "commands with --export",
    "behind": "PyTorch at once; vkrt.load exports behind it (VKRT_EXPORT), commands with --export",
    "first": "exported before they run (VKRT_EXPORT)",
    "never": "PyTorch, or a bundle that is in the cache (VKRT_EXPORT)",
}


def look_at_exports() -> dict[str, Any]:
    """Return how checkpoints come to run as bundles here, and which of them can't."""
    from vkrt import backends
    from vkrt.errors import BackendError
    from vkrt.export.refusals import all_refusals
    from vkrt.options import cache_folder, default_export, exports_forbidden

    try:
        way, wrong = default_export(), ""
    except BackendError as error:
        way, wrong = "auto", str(error)
    refused = all_refusals(cache_folder() / "bundles").values()
    return {
        "way": way,
        "wrong": wrong or None,
        "forbidden": exports_forbidden(),
        "missing": backends.needed_to_export() or None,
        "refused": [
            {"model": r.model, "checkpoint": r.checkpoint, "reason": r.reason} for r in refused
        ],
    }


def describe_export(exports: dict[str, Any]) -> str:
    """Return how checkpoints run as one line."""
    if exports["wrong"]:
        return exports["wrong"]
    if exports["forbidden"]:
        return "exports are forbidden (VKRT_EXPORT): PyTorch, or a bundle that is in the cache"
    if exports["missing"]:
        return f"never exported, which needs {exports['missing']}"
    return WAYS[exports["way"]]


def show_refused(exports: dict[str, Any]) -> None:
    """Print which checkpoints were not exported, and why."""
    for refused in exports["refused"]:
        print(f"not exported: {refused['checkpoint']} ({refused['model']}): {refused['reason']}")
    if exports["refused"]:
        print("    it is tried again with other versions, or after vkrt cache clear --refusals")

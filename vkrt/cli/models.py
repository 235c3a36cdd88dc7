"""`vkrt models`: every known model, and where its weights are."""

from __future__ import annotations

from typing import Any

from vkrt.cli.output import AsJson, print_json, print_table

__all__ = ["models"]


def models(as_json: AsJson = False) -> None:
    """List every model that vkrt knows, and where its weights are."""
    from vkrt import catalog

    found = [describe(catalog.find(name)) for name in catalog.names()]
    if as_json:
        print_json(found)
        return
    print_table(
        ["name", "SAM", "input", "hub id", "weights"],
        [
            [
                model["name"],
                model["version"],
                str(model["image_size"]),
                model["hub_id"] or "-",
                place(model),
            ]
            for model in found
        ],
        fold=4,
    )
    print("`vkrt pull NAME` fetches weights that are not here; --checkpoint FILE takes your own.")


def describe(model: Any) -> dict[str, Any]:
    """Return a model's entry; `file` and `bundle` are where it is on this machine, or None."""
    from vkrt.bundle import is_bundle
    from vkrt.weights.hub import find_local

    file, bundle = find_local(model), model.packaged_bundle
    return {
        "name": model.name,
        "version": model.config.version,
        "image_size": model.config.image_size,
        "hub_id": model.hub_id,
        "checkpoint": model.checkpoint,
        "summary": model.summary,
        "packaged": file is not None and file == model.packaged,
        "file": None if file is None else str(file),
        "bundle": str(bundle) if bundle is not None and is_bundle(bundle) else None,
    }


def place(model: dict[str, Any]) -> str:
    """Return where a model's weights are, or how to get them."""
    if model["packaged"]:
        return "packaged"
    if model["file"]:
        return str(model["file"])
    return "not here" if model["hub_id"] else "missing"

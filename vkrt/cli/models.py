"""`vkrt models`: every known model, and where its weights are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vkrt.cli.output import AsJson, print_json, print_table

if TYPE_CHECKING:
    from vkrt.catalog import PictureModel

__all__ = ["models"]


def models(as_json: AsJson = False) -> None:
    """List every model that vkrt knows, and where its weights are."""
    from vkrt import catalog

    found = [describe(catalog.find(name)) for name in catalog.names()]
    found += map(describe_picture_model, catalog.picture_models().values())
    if as_json:
        print_json(found)
        return
    print_table(
        ["name", "input", "hub id", "weights"],
        [
            [
                model["name"],
                str(model["image_size"] or "-"),
                model["hub_id"] or "-",
                place(model),
            ]
            for model in found
        ],
        2,
        3,
    )
    print("`vkrt pull NAME` fetches weights that are not here; --checkpoint FILE takes your own.")


def describe(model: Any) -> dict[str, Any]:
    """Return a model's entry; `file` and `bundle` are where it is on this machine, or None."""
    from vkrt.bundle import is_bundle
    from vkrt.weights.hub import find_local

    file, bundle = find_local(model), model.packaged_bundle
    return {
        "name": model.name,
        "family": "SAM",
        "version": model.config.version,
        "image_size": model.config.image_size,
        "hub_id": model.hub_id,
        "checkpoint": model.checkpoint,
        "summary": model.summary,
        "packaged": file is not None and file == model.packaged,
        "file": None if file is None else str(file),
        "bundle": str(bundle) if bundle is not None and is_bundle(bundle) else None,
    }


def describe_picture_model(model: PictureModel) -> dict[str, Any]:
    """Return the entry of a model that makes pictures, with the same fields."""
    from vkrt.weights.hub import find_local

    file = find_local(model)
    return {
        "name": model.name,
        "family": "SD",
        "version": "3.5",
        "image_size": None,
        "hub_id": model.hub_id,
        "checkpoint": model.checkpoint,
        "summary": model.summary,
        "packaged": False,
        "file": None if file is None else str(file),
        "bundle": None,
    }


def place(model: dict[str, Any]) -> str:
    """Return where a model's weights are, or how to get them."""
    if model["packaged"]:
        return "packaged"
    if model["file"]:
        return str(model["file"])
    return "not here" if model["hub_id"] else "missing"

"""`vkrt doctor MODEL`: how a generation would go within memory, stage by stage."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from vkrt.cli.generate import load
from vkrt.cli.generate_request import Recipe
from vkrt.cli.output import print_table
from vkrt.cli.track import plain_warnings

if TYPE_CHECKING:
    from vkrt.memory.plan import Plan

__all__ = ["plan_generation", "show_plan"]

# What of a recipe changes the plan, beside the size.
NUMBERS = ("steps", "guidance", "t5_length")
FATES = {
    "stays": "stays loaded",
    "evicted": "evicted afterwards",
    "streamed": "streamed from the host",
}


def plan_generation(recipe: Recipe, count: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the plan of a generation as JSON has it; no weights are read.

    Args:
        recipe: of the generation, whose prompt does not count.
        count: pictures of a call.
        settings: how to run the model, as vkrt.load takes them.
    """
    names = ("width", "height", *NUMBERS)
    asked = {name: recipe.said[name] for name in names if name in recipe.said}
    with plain_warnings(), closing(load(recipe, settings)) as model:
        plan = model.plan(count=count, control="control_model" in recipe.said, **asked)
        return {"model": model.name, **asked, "count": count, **describe(plan)}


def describe(plan: Plan) -> dict[str, Any]:
    """Return a plan as JSON has it; sizes in bytes."""
    return {
        "limit": plan.limit,
        "fits": plan.fits(plan.limit),
        "peak": plan.peak,
        "rows": plan.rows,
        "tile": plan.tile,
        "phases": [
            {
                "phase": phase.name,
                "weights": phase.weights,
                "activations": phase.activations,
                "peak": phase.peak,
            }
            for phase in plan.phases.values()
        ],
        "stages": [
            {
                "phase": row.phase,
                "stage": row.stage,
                "weights": row.weights,
                "activations": row.activations,
                "fate": row.fate,
            }
            for row in plan.table()
        ],
    }


def show_plan(report: dict[str, Any]) -> None:
    """Print a plan for a person."""
    peaks = {phase["phase"]: phase["peak"] for phase in report["phases"]}
    rows, last = [], None
    for row in report["stages"]:
        # The peak is of the phase: it stands beside its first stage.
        peak = "" if row["phase"] == last else size(peaks[row["phase"]])
        last = row["phase"]
        sizes = (size(row["weights"]), size(row["activations"]), peak)
        rows.append([row["stage"], *sizes, FATES.get(row["fate"], row["fate"])])
    print_table(["stage", "weights", "work", "peak", "its weights"], rows, 4)
    fullest = max(peaks, key=lambda name: peaks[name], default="")
    print(f"expected peak: {size(report['peak'])}, in the phase {fullest!r}")
    tile = "" if report["tile"] is None else f"; decoded in tiles of {report['tile']} latent pixels"
    print(f"rows of a step at once: {report['rows']}{tile}")
    if report["limit"] is not None:
        fits = "fits" if report["fits"] else "does NOT fit; take a smaller --size, --count or model"
        print(f"limit: {size(report['limit'])}, {fits}")


def size(count: int) -> str:
    """Return an amount of bytes as a person reads it."""
    for unit, bytes_of in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= bytes_of:
            return f"{count / bytes_of:.1f} {unit}"
    return f"{count} B"

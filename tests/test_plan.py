"""The plan of memory: what stays, what goes, and what a limit changes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from vkrt.memory.activations import Shape, activation_numbers, held_numbers
from vkrt.memory.plan import TILE, Plan, make_plan
from vkrt.models.sd35.config import ControlNetConfig
from vkrt.models.sd35.known import KNOWN

GIB = 1024**3
MEDIUM = KNOWN["sd3.5-medium"]
# Roughly those of Medium in bf16.
WEIGHTS = {
    "clip_l": 250 * 10**6,
    "clip_g": 1390 * 10**6,
    "t5": 9520 * 10**6,
    "conditioning": 1580 * 10**6,
    "positions": 450 * 10**6,
    "mmdit": 2920 * 10**6,
    "vae_decoder": 100 * 10**6,
}
HALF = dict.fromkeys(WEIGHTS, 2)
SHAPE = Shape(MEDIUM, rows=2)


def plan(limit: int | None = None, **changes: object) -> Plan:
    return make_plan(replace(SHAPE, **changes), WEIGHTS, WEIGHTS, limit, HALF)


def test_without_a_limit_what_runs_once_goes() -> None:
    made = plan()
    assert made.kept == {"clip_l", "clip_g", "mmdit", "vae_decoder"}
    assert made.resident("t5") == made.kept | {"t5"}
    assert made.resident("sampling") == made.resident("") == made.kept
    assert made.resident("conditioning") == made.kept | {"conditioning"}
    assert (made.rows, made.tile) == (2, None)
    assert not made.streamed
    assert made.fits(None)


def test_the_peak_is_that_of_the_fullest_phase() -> None:
    made = plan()
    kept = sum(WEIGHTS[name] for name in made.kept)
    t5 = kept + WEIGHTS["t5"] + 2 * activation_numbers("t5", SHAPE)
    assert made.phases["t5"].peak == made.peak == t5
    step = 2 * (activation_numbers("mmdit", SHAPE) + held_numbers(SHAPE))
    assert made.phases["sampling"].peak == kept + step
    assert made.fits(t5)
    assert not made.fits(t5 - 1)


def test_a_roomy_limit_keeps_everything() -> None:
    made = plan(100 * GIB)
    assert made.kept == WEIGHTS.keys()
    assert all(row.fate == "stays" for row in made.table())


@pytest.mark.parametrize("gib", [18, 16, 14, 12, 10.5])
def test_a_limit_is_kept(gib: float) -> None:
    limit = int(gib * GIB)
    made = plan(limit)
    assert made.fits(limit)
    assert made.limit == limit
    assert not made.streamed


def test_less_room_keeps_less() -> None:
    kept = [plan(int(gib * GIB)).kept for gib in (18, 16, 14, 12.5, 10.5)]
    assert all(less <= more for more, less in pairwise(kept))
    assert kept[-1] == set()


def test_what_fits_in_no_way_is_streamed() -> None:
    limit = 4 * GIB
    made = plan(limit)
    assert made.streamed.keys() == {"t5"}
    assert made.fits(limit)
    assert made.phases["t5"].peak == limit
    fates = {row.stage: (row.fate, row.weights) for row in made.table()}
    assert fates["t5"] == ("streamed", made.streamed["t5"])
    assert fates["mmdit"] == ("evicted", WEIGHTS["mmdit"])


def test_a_limit_below_the_activations_does_not_fit() -> None:
    made = plan(GIB // 100)
    assert not made.fits(GIB // 100)
    assert made.floor > GIB // 100


def test_rows_and_tiles_give_way_before_weights_are_streamed() -> None:
    without_t5 = {name: size for name, size in WEIGHTS.items() if name != "t5"}
    shape = replace(SHAPE, width=2048, height=1024, rows=16)
    full = make_plan(shape, without_t5, without_t5, None, HALF)
    limit = WEIGHTS["mmdit"] + full.phases["sampling"].activations // 2
    made = make_plan(shape, without_t5, without_t5, limit, HALF)
    assert made.rows < 16
    assert made.tile is None
    assert made.fits(limit)
    assert not made.streamed
    small = {name: size // 10 for name, size in without_t5.items()}
    limit = full.phases["decode"].activations // 2
    made = make_plan(shape, small, small, limit, HALF)
    assert made.tile == TILE
    assert made.fits(limit)
    assert not made.streamed


def test_large_pictures_are_decoded_in_tiles() -> None:
    whole, tiled = plan(width=2048, height=1024), plan(width=2048, height=1040)
    assert (whole.tile, tiled.tile) == (None, TILE)
    less = tiled.phases["decode"].activations / whole.phases["decode"].activations
    assert less == (8 * TILE) ** 2 / (2048 * 1024)


def test_only_what_is_used_is_planned() -> None:
    used = WEIGHTS.keys() - {"t5"}
    made = make_plan(SHAPE, WEIGHTS, used, None, HALF)
    assert "t5" not in made.phases
    assert {row.stage for row in made.table()} == used


def test_a_controlnet_is_planned() -> None:
    names = {"controlnet", "controlnet_conditioning", "mmdit_controlled", "vae_encoder"}
    used = (WEIGHTS.keys() - {"mmdit"}) | names
    shape = replace(SHAPE, config=KNOWN["sd3.5-large"], control=ControlNetConfig())
    made = make_plan(shape, dict.fromkeys(used, GIB), used)
    assert {"controlnet", "mmdit_controlled"} <= made.kept
    assert made.phases["sampling"].weights == GIB * len(made.kept)
    assert held_numbers(shape) > held_numbers(replace(shape, control=None))
    assert activation_numbers("controlnet", shape) > 0


def test_rows_of_the_table_come_in_the_order_of_the_run() -> None:
    order = [row.stage for row in plan().table()]
    assert order == [
        *("clip_l", "clip_g", "t5", "conditioning", "positions", "mmdit", "vae_decoder")
    ]


@pytest.mark.parametrize("stage", [*WEIGHTS, "vae_encoder"])
def test_larger_pictures_never_take_less(stage: str) -> None:
    small, large = (
        activation_numbers(stage, replace(SHAPE, width=side, height=side)) for side in (512, 1024)
    )
    assert 0 < small <= large

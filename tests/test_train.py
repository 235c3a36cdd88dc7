"""The demo model's training: it learns, and an interrupted run goes on as if it had not been."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vkrt.demo.scenes import make_scene
from vkrt.demo.train import (
    FIRST_TRAINING_SEED,
    Recipe,
    Scenes,
    build,
    choose,
    fill_of,
    learning_rate,
    train,
)

SMALL = Recipe(steps=4, batch=1, objects=2, rounds=2)


def test_scenes_are_drawn_by_index() -> None:
    recipe = replace(SMALL, scene_size=64)
    scenes = Scenes(recipe, first=5)
    pixels, masks = scenes[2]
    again, same = Scenes(recipe, first=7)[0]
    assert torch.equal(pixels, again)
    assert torch.equal(masks, same)
    assert (pixels.shape, masks.shape) == ((3, 64, 64), (2, 64, 64))
    assert masks.flatten(1).any(1).all()
    scene = make_scene(FIRST_TRAINING_SEED + 7, 64)
    assert torch.equal(pixels, torch.from_numpy(scene.image).permute(2, 0, 1))


def test_the_rate_warms_up_and_anneals() -> None:
    recipe = Recipe()
    rates = [learning_rate(recipe, p) for p in (0.0, 0.01, recipe.warmup, 0.5, 1.0)]
    assert rates[0] < rates[1] < rates[2]
    assert rates[2] == pytest.approx(recipe.learning_rate)
    assert rates[2] > rates[3] > rates[4] == pytest.approx(0.01 * recipe.learning_rate)


def test_sparse_objects_are_asked_for_more_often() -> None:
    """A ring around a disc fills little of its box; both stand alone in their picture."""
    y, x = np.mgrid[:64, :64] - 32
    labels = np.where(x * x + y * y < 100, 1, 0)
    labels[(np.abs(x) > 28) | (np.abs(y) > 28)] = 2
    assert fill_of(labels == 1) > 0.75 > 0.4 > fill_of(labels == 2)
    rng, visible = np.random.default_rng(0), np.array([1, 2])
    wanted = replace(SMALL, objects=400, prefer_sparse=True)
    shares = [
        (choose(rng, labels, visible, recipe) == 2).mean()
        for recipe in (wanted, replace(wanted, prefer_sparse=False))
    ]
    assert shares[0] > 0.6 > 0.57 > shares[1] > 0.43


@pytest.mark.parametrize("muon", [False, True])
def test_every_parameter_has_one_optimizer(muon: bool) -> None:
    state = build(replace(SMALL, muon=muon))
    held = [p for o in state.optimizers for g in o.param_groups for p in g["params"]]
    assert len(state.optimizers) == 1 + muon
    assert len(held) == len(set(map(id, held))) == len(list(state.model.parameters()))


@pytest.mark.parametrize("recipe", [SMALL, replace(SMALL, muon=True, prefer_sparse=True)])
def test_an_interrupted_run_goes_on(tmp_path: Path, recipe: Recipe) -> None:
    whole = train(recipe, tmp_path / "whole", workers=0)
    train(recipe, tmp_path / "parts", workers=0, until=2)
    parts = train(recipe, tmp_path / "parts", workers=0)
    start = build(recipe).model.state_dict()
    moved = False
    for name, value in whole.state_dict().items():
        # Threads may sum in another order; two steps apart from each other would be far more.
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-3, atol=2e-4)
        moved |= not torch.equal(value, start[name])
    assert moved


@pytest.mark.slow
def test_it_learns_one_scene(tmp_path: Path) -> None:
    """Sixty steps on fixed scenes lower the loss well below where they began."""
    from torch import nn

    from vkrt.demo.rounds import step_loss

    state = build(SMALL)
    scenes = Scenes(Recipe(objects=4), 0)
    pixels, masks = (
        torch.stack(parts) for parts in zip(*(scenes[i] for i in range(2)), strict=True)
    )
    losses = []
    for step in range(60):
        (optimizer,) = state.optimizers
        for group in optimizer.param_groups:
            group["lr"] = 6e-4 * min(1, (step + 1) / 10)
        rng = torch.Generator().manual_seed(step)
        loss, _ = step_loss(state.model, pixels, masks, 1, 1.0, rng)
        loss.backward()
        nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])

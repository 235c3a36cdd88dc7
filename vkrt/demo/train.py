"""Train the demo model on procedural scenes: `python -m vkrt.demo.train --out runs/nano`.

The recipe follows SAM and SAM 2: a click or a box names one object of a scene, then rounds of
corrections are drawn from where the answer is wrong, each with the previous logits as input.
Everything is seeded; a run that was interrupted goes on from its last checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vkrt import catalog
from vkrt.demo.initialize import initialize
from vkrt.demo.rounds import step_loss
from vkrt.demo.run import Course, State, annealed, make_optimizers, resume, save_weights, take_steps
from vkrt.demo.scenes import make_scene
from vkrt.models.sam2.model import Sam2
from vkrt.weights.sam2 import load_sam2

__all__ = ["Recipe", "train"]

# Held-out scenes have the seeds below this one; training never sees them.
FIRST_TRAINING_SEED = 1_000_000
SEEDS_A_RUN = 1_000_000
MIN_AREA = 0.003
LOG_EVERY = 100
SAVE_EVERY = 500


@dataclass(frozen=True)
class Recipe:
    """Say how the demo model is trained.

    Attributes:
        image_size: side of the model's input, in pixels.
        scene_size: side of the scenes that are drawn, in pixels.
        steps: optimizer steps; the learning rate follows them to the end.
        batch: scenes a step.
        objects: prompts a scene.
        rounds: predictions a prompt: the first, then corrections.
        learning_rate: the peak, after the share `warmup` of the steps.
        grouping_until: share of the steps over which the grouping loss fades out.
        single_round_until: share of the steps that have no corrections yet.
        prefer_sparse: ask more often for objects that fill little of their box: those cut in
            pieces by others, which take longest to learn.
        muon: move the matrices by Muon (https://kellerjordan.github.io/posts/muon/), the rest by
            AdamW; without it, all by AdamW.
        ema: decay of the averaged weights, which are the ones kept.
    """

    model: str = "sam2.1-nano"
    image_size: int = 256
    scene_size: int = 256
    steps: int = 8_000
    batch: int = 4
    objects: int = 6
    rounds: int = 3
    learning_rate: float = 6e-4
    weight_decay: float = 0.05
    warmup: float = 0.03
    grouping_until: float = 0.6
    single_round_until: float = 0.2
    prefer_sparse: bool = False
    muon: bool = False
    ema: float = 0.998
    seed: int = 0


class Scenes(Dataset[tuple[Tensor, Tensor]]):
    """Give the scene of an index with some of its objects, the same for the same index."""

    def __init__(self, recipe: Recipe, first: int) -> None:
        self.recipe, self.first = recipe, first

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return pixels (3, S, S) uint8 and masks (objects, S, S) bool."""
        # Runs of another seed draw other scenes.
        size = self.recipe.scene_size
        seed = FIRST_TRAINING_SEED + self.recipe.seed * SEEDS_A_RUN + self.first + index
        while True:
            scene = make_scene(seed, size)
            visible = np.flatnonzero(scene.areas() >= MIN_AREA * size**2) + 1
            if len(visible):
                break
            seed += 1 << 31
        rng = np.random.default_rng(seed)
        chosen = choose(rng, scene.labels, visible, self.recipe)
        masks = scene.labels[None] == chosen[:, None, None]
        pixels = np.ascontiguousarray(scene.image.transpose(2, 0, 1))
        return torch.from_numpy(pixels), torch.from_numpy(masks)


def choose(
    rng: np.random.Generator, labels: np.ndarray, visible: np.ndarray, recipe: Recipe
) -> np.ndarray:
    """Draw the objects to ask for; the less an object fills its box, the likelier it is drawn."""
    chance = np.ones(len(visible))
    if recipe.prefer_sparse:
        fill = [fill_of(labels == label) for label in visible]
        chance = 1 / (0.25 + np.array(fill))
    few = len(visible) < recipe.objects
    return rng.choice(visible, recipe.objects, replace=few, p=chance / chance.sum())


def fill_of(mask: np.ndarray) -> float:
    """Return the share of its box that a mask (H, W) covers."""
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    box = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    return float(mask.sum() / box)


def learning_rate(recipe: Recipe, progress: float) -> float:
    """Return the rate at `progress` in [0, 1]."""
    return annealed(recipe.learning_rate, recipe.warmup, progress)


def build(recipe: Recipe) -> State:
    """Return the state of a run that has not begun."""
    config = catalog.find(recipe.model, recipe.image_size).config
    # Before the modules are made: convolutions keep the values that torch draws for them.
    torch.manual_seed(recipe.seed)
    model, averaged = Sam2(config), Sam2(config)
    initialize(model)
    averaged.load_state_dict(model.state_dict())
    optimizers = make_optimizers(model.parameters(), recipe.weight_decay, recipe.muon)
    return State(model, averaged, optimizers)


def batches(recipe: Recipe, first: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Give batches of scenes from index `first` on, without end."""
    loader = DataLoader(
        Scenes(recipe, first),
        batch_size=recipe.batch,
        num_workers=workers,
        prefetch_factor=6 if workers else None,
    )
    return iter(loader)


def mean_row(recipe: Recipe, rows: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of some steps."""
    names = ["loss", "grouping", *(f"round{i + 1}" for i in range(recipe.rounds)), "box"]
    return {n: float(np.mean([r.get(n, math.nan) for r in rows])) for n in names}


def train(
    recipe: Recipe,
    out: Path,
    workers: int = 1,
    until: int | None = None,
    start_from: Path | None = None,
) -> Sam2:
    """Train, or go on training, and return the averaged model.

    Writes state.pt (to go on from) and curve.csv to `out`.

    Args:
        recipe: what to train and how; a run goes on only with the one that it began with.
        out: folder of the run.
        workers: processes that draw scenes.
        until: stop at this step; the next call goes on from it.
        start_from: weights to begin a run with, instead of random ones.
    """
    out.mkdir(parents=True, exist_ok=True)
    state = build(recipe)
    if not resume(state, out) and start_from is not None:
        state.begin_with(load_sam2(start_from, recipe.model)[1].state_dict())
    source = batches(recipe, state.step * recipe.batch, workers)
    return take_steps(
        state,
        out,
        Course(recipe.steps, until, LOG_EVERY, SAVE_EVERY, ("scenes", recipe.batch)),
        lambda: advance(state, recipe, *next(source)),
        lambda rows: mean_row(recipe, rows),
    )


def advance(state: State, recipe: Recipe, pixels: Tensor, masks: Tensor) -> dict[str, float]:
    """Take one optimizer step; return its loss and IoU of the grouping, each round, and boxes."""
    progress = state.step / recipe.steps
    state.set_rate(learning_rate(recipe, progress))
    rng = torch.Generator().manual_seed(recipe.seed * (1 << 32) + state.step)
    grouping = max(0.0, 1 - progress / recipe.grouping_until) if recipe.grouping_until else 0.0
    rounds = 1 if progress < recipe.single_round_until else recipe.rounds
    loss, ious = step_loss(state.model, pixels, masks, rounds, grouping, rng)
    loss.backward()
    state.move(recipe.ema)
    grouped, *answered, boxed = ious
    clicks = {f"round{i + 1}": v for i, v in enumerate(answered)}
    return {"loss": loss.item(), "grouping": grouped, **clicks, "box": boxed}


# The demo model was trained in five parts: the first where steps are cheap, the others at larger
# sizes and without help from the grouping loss. It runs at a larger one still.
# From the third on, scenes come as an engine shows them, enlarged from 256 pixels. Each part draws
# its own scenes.
LATER = Recipe(image_size=320, grouping_until=0.0, single_round_until=0.0)
PARTS = (
    Recipe(),
    replace(LATER, scene_size=320, steps=900, learning_rate=1.5e-4, seed=1),
    replace(LATER, steps=7_400, learning_rate=5e-4, prefer_sparse=True, muon=True, seed=2),
    replace(
        LATER,
        image_size=384,
        steps=5_000,
        rounds=2,
        learning_rate=4e-4,
        prefer_sparse=True,
        muon=True,
        seed=3,
    ),
    replace(
        LATER,
        image_size=448,
        steps=3_800,
        rounds=2,
        learning_rate=3e-4,
        prefer_sparse=True,
        muon=True,
        seed=4,
    ),
)


def main(
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    part: Annotated[
        int | None, typer.Option(min=1, max=len(PARTS), help="Run this part alone.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that draw scenes.")] = 1,
) -> None:
    """Train sam2.1-nano: OUT/part-1 and on, each with its weights as safetensors."""
    previous: Path | None = None
    for number, recipe in enumerate(PARTS, start=1):
        folder = out / f"part-{number}"
        weights = folder / f"{recipe.model}.safetensors"
        if part in (None, number):
            print(asdict(recipe), flush=True)
            save_weights(train(recipe, folder, workers, start_from=previous), weights)
        previous = weights


if __name__ == "__main__":
    typer.run(main)

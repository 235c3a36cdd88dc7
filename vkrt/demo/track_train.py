"""Teach the demo model to track: `python -m vkrt.demo.track_train --out RUN --start-from WEIGHTS`.

The recipe follows SAM 2: objects of a short clip are prompted on its first frame and tracked with
the model's own memories, with gradients through time, and at times corrected on the way. Scenes
beside the clips keep what the model knows of single pictures. Everything is seeded; a run that
was interrupted goes on from its last checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from vkrt import catalog
from vkrt.demo.clips import ClipSource
from vkrt.demo.initialize import initialize
from vkrt.demo.rounds import normalized, step_loss
from vkrt.demo.run import (
    CHECKPOINT,
    Course,
    State,
    annealed,
    make_optimizers,
    resume,
    save_weights,
    take_steps,
)
from vkrt.demo.track_memory import Modules
from vkrt.demo.track_recipe import PARTS, TrackRecipe
from vkrt.demo.track_rounds import FIGURES, Lesson, clip_loss
from vkrt.demo.track_start import prepare_memory
from vkrt.demo.train import FIRST_TRAINING_SEED, MIN_AREA, SEEDS_A_RUN, Recipe, batches
from vkrt.models.sam2.model import Sam2
from vkrt.weights.hub import pull
from vkrt.weights.sam2 import load_sam2

__all__ = ["train_tracking"]

LATEST_START = 48  # frames of a clip that may pass before the first that is used
SCENE_ROUNDS = 2
# Of the clips; the objects of the others are named by masks.
CLICKED, BOXED = 0.6, 0.2
LONGEST_SINCE = 40  # frames
LOG_EVERY = 50
SAVE_EVERY = 100
# The modules that no picture alone teaches; they learn at the full rate.
OF_TRACKING = (
    "memory_attention",
    "memory_encoder",
    "mask_downsample",
    "obj_ptr_",
    "maskmem_tpos_enc",
    "no_obj_",
    "sam_mask_decoder.pred_obj_score_head",
)


class Clips(Dataset[tuple[Tensor, Tensor]]):
    """Give the clip of an index with some of its objects, the same for the same index."""

    def __init__(self, recipe: TrackRecipe, first: int) -> None:
        self.recipe, self.first = recipe, first

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return pixels (T, 3, S, S) uint8 and masks (T, K, S, S) bool, K at least 1."""
        recipe = self.recipe
        seed = FIRST_TRAINING_SEED + recipe.seed * SEEDS_A_RUN + self.first + index
        rng = np.random.default_rng(seed)
        while True:
            source = ClipSource(seed, recipe.clip_size)
            time, stride = int(rng.integers(LATEST_START)), int(rng.integers(1, recipe.stride + 1))
            first = source.frame(time)
            areas = np.bincount(first[1].ravel(), minlength=source.count + 1)[1:]
            visible = np.flatnonzero(areas >= MIN_AREA * first[1].size) + 1
            if len(visible):
                break
            seed += 1 << 31
        chosen = rng.choice(visible, min(recipe.objects, len(visible)), replace=False)
        count = int(rng.integers(recipe.frames[0], recipe.frames[1] + 1))
        frames = [first, *(source.frame(time + stride * i) for i in range(1, count))]
        images, labels = (np.stack(parts) for parts in zip(*frames, strict=True))
        masks = labels[:, None] == chosen[None, :, None, None]
        pixels = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        return torch.from_numpy(pixels), torch.from_numpy(masks)


def clips_of(recipe: TrackRecipe, first: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Give clips from index `first` on, one by one and without end."""
    loader = DataLoader(
        Clips(recipe, first),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
    )
    return iter(loader)


def scenes_of(
    recipe: TrackRecipe, step: int, workers: int
) -> Iterator[tuple[Tensor, Tensor]] | None:
    """Give the scenes beside the clips from a step on, or None where there are none."""
    if not recipe.scenes:
        return None
    drawn = Recipe(
        scene_size=recipe.clip_size,
        batch=recipe.scenes,
        objects=recipe.scene_objects,
        seed=recipe.seed,
    )
    return batches(drawn, step * recipe.scenes, workers)


def is_of_tracking(name: str) -> bool:
    """Tell whether a parameter belongs to what pictures alone do not teach."""
    return name.startswith(OF_TRACKING)


def parameters_of(recipe: TrackRecipe, model: Sam2) -> list[tuple[float, list[nn.Parameter]]]:
    """Return all parameters in parts, with the share of the learning rate that each has."""
    parts: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if is_of_tracking(name):
            share = 1.0
        else:
            is_encoder = name.startswith("image_encoder")
            share = recipe.encoder_share if is_encoder else recipe.decoder_share
        parts.setdefault(share, []).append(parameter)
    return list(parts.items())


def build(recipe: TrackRecipe, start_from: Path | None) -> State:
    """Return the state of a run that has not begun.

    Args:
        recipe: what to train and how.
        start_from: weights to begin with; None leaves random ones.
    """
    config = catalog.find(recipe.model, recipe.image_size).config
    torch.manual_seed(recipe.seed)
    model, averaged = Sam2(config), Sam2(config)
    optimizers = [
        optimizer
        for share, parameters in parameters_of(recipe, model)
        for optimizer in make_optimizers(parameters, recipe.weight_decay, recipe.muon, share)
    ]
    state = State(model, averaged, optimizers)
    weights = load_sam2(start_from, recipe.model)[1].state_dict() if start_from else {}
    if recipe.fresh:
        initialize(model)
        weights = {name: value for name, value in weights.items() if not is_of_tracking(name)}
    state.begin_with({**model.state_dict(), **weights})
    if recipe.fresh:
        frames = Clips(recipe, 0)[0][0][:4]
        prepare_memory(model, normalized(frames, recipe.image_size))
        averaged.load_state_dict(model.state_dict())
    return state


def lesson_of(recipe: TrackRecipe, progress: float, frames: int, rng: torch.Generator) -> Lesson:
    """Draw how a clip of so many frames is gone through."""
    kind, corrected, refined, old = torch.rand(4, generator=rng).tolist()
    frame = int(torch.randint(1, frames, (), generator=rng))
    since = int(torch.randint(LONGEST_SINCE + 1, (), generator=rng))
    return Lesson(
        prompt="click" if kind < CLICKED else "box" if kind < CLICKED + BOXED else "mask",
        correct_at=frame if corrected < recipe.corrections else None,
        refine=refined < 0.5,
        since=since if old < 0.5 else 0,
        trust=progress < recipe.trust_until,
    )


def advance(
    state: State,
    modules: Modules,
    recipe: TrackRecipe,
    clips: list[tuple[Tensor, Tensor]],
    scenes: tuple[Tensor, Tensor] | None,
) -> dict[str, float]:
    """Take one optimizer step; return its loss, the figures of its clips and those of scenes."""
    progress = state.step / recipe.steps
    state.set_rate(annealed(recipe.learning_rate, recipe.warmup, progress))
    state.model.image_encoder.requires_grad_(progress >= recipe.encoder_from)
    rng = torch.Generator().manual_seed(recipe.seed * (1 << 32) + state.step)
    rows = []
    for pixels, masks in clips:
        lesson = lesson_of(recipe, progress, len(pixels), rng)
        loss, figures = clip_loss(modules, pixels, masks, lesson, rng)
        # One clip at a time: its graph reaches through all of its frames.
        (loss / len(clips)).backward()
        rows.append({"loss": loss.item(), **figures})
    row = mean_row(rows)
    if scenes is not None:
        loss, (_, clicked, *_, boxed) = step_loss(state.model, *scenes, SCENE_ROUNDS, 0.0, rng)
        loss.backward()
        row |= {"click": clicked, "box": boxed}
    state.move(recipe.ema)
    return row


def mean_row(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each figure over the rows that have it; NaN where none has."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    found = {n: [r[n] for r in rows if not math.isnan(r.get(n, math.nan))] for n in names}
    return {n: float(np.mean(values)) if values else math.nan for n, values in found.items()}


def train_tracking(
    recipe: TrackRecipe,
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
        workers: processes that draw clips, and as many that draw scenes.
        until: stop at this step; the next call goes on from it.
        start_from: weights to begin a run with.
    """
    out.mkdir(parents=True, exist_ok=True)
    state = build(recipe, None if (out / CHECKPOINT).exists() else start_from)
    resume(state, out)
    modules = Modules(state.model)
    source = clips_of(recipe, state.step * recipe.clips, workers)
    others = scenes_of(recipe, state.step, workers)

    def step() -> dict[str, float]:
        clips = [next(source) for _ in range(recipe.clips)]
        return advance(state, modules, recipe, clips, next(others) if others else None)

    def mean(rows: list[dict[str, float]]) -> dict[str, float]:
        found = mean_row(rows)
        return {name: found.get(name, math.nan) for name in ("loss", *FIGURES, "click", "box")}

    course = Course(recipe.steps, until, LOG_EVERY, SAVE_EVERY, ("clips", recipe.clips))
    return take_steps(state, out, course, step, mean)


def main(
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    start_from: Annotated[Path | None, typer.Option(help="Weights; None: the model's own.")] = None,
    part: Annotated[
        int | None, typer.Option(min=1, max=len(PARTS), help="Run this part alone.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that draw clips, and scenes.")] = 1,
) -> None:
    """Teach sam2.1-nano to track: OUT/part-1 and on, each with its weights as safetensors."""
    known = [start_from or pull(catalog.find(PARTS[0].model), offline=True)]
    for number, recipe in enumerate(PARTS, start=1):
        folder = out / f"part-{number}"
        weights = folder / f"{recipe.model}.safetensors"
        if part in (None, number):
            print(asdict(recipe), flush=True)
            first = known[-1]
            if recipe.averaged:
                first = folder / "mean.safetensors"
                folder.mkdir(parents=True, exist_ok=True)
                save_weights(mean_of(known, recipe.model), first)
            save_weights(train_tracking(recipe, folder, workers, start_from=first), weights)
        known.append(weights)


def mean_of(known: Sequence[Path], name: str) -> Sam2:
    """Return the mean of weights; what is of tracking is not taken from the first."""
    models = [load_sam2(path, name)[1] for path in known]
    states = [model.state_dict() for model in models]
    averaged = {
        key: torch.stack([state[key] for state in states[is_of_tracking(key) :]]).mean(0)
        for key in states[0]
    }
    models[0].load_state_dict(averaged)
    return models[0]


if __name__ == "__main__":
    typer.run(main)

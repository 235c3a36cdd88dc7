"""How the demo model learns to track, in numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["PARTS", "TrackRecipe"]


@dataclass(frozen=True)
class TrackRecipe:
    """Say how the demo model learns to track.

    Attributes:
        image_size: side of the model's input, in pixels.
        clip_size: side of the clips and scenes that are drawn, in pixels.
        steps: optimizer steps; the learning rate follows them to the end.
        clips: clips a step.
        objects: objects a clip, at most.
        frames: the fewest and the most frames a clip.
        stride: frames from one to the next, at most.
        corrections: share of the clips that are corrected on one frame.
        scenes: scenes a step, beside the clips; 0 for none.
        scene_objects: prompts a scene.
        learning_rate: the peak for what no picture teaches, after the share `warmup` of the steps.
        decoder_share, encoder_share: of that rate, for the mask decoder and the prompts, and for
            the image encoder, which pictures have taught.
        encoder_from: share of the steps after which the image encoder learns too; 1 keeps it.
        trust_until: share of the steps in which it is not the model that says whether an object
            was there, when that is remembered.
        fresh: begin with new memory modules, for weights that know pictures alone.
        averaged: begin with the mean of all weights so far, those that know pictures alone among
            them as far as they go: between them lie weights that are good at both.
        muon: move the matrices by Muon, the rest by AdamW; without it, all by AdamW.
        ema: decay of the averaged weights, which are the ones kept.
    """

    model: str = "sam2.1-nano"
    image_size: int = 256
    clip_size: int = 256
    steps: int = 2_200
    clips: int = 2
    objects: int = 3
    frames: tuple[int, int] = (4, 8)
    stride: int = 4
    corrections: float = 0.25
    scenes: int = 2
    scene_objects: int = 4
    learning_rate: float = 1.2e-3
    decoder_share: float = 0.5
    encoder_share: float = 0.1
    encoder_from: float = 0.3
    trust_until: float = 0.15
    fresh: bool = False
    averaged: bool = False
    weight_decay: float = 0.05
    warmup: float = 0.03
    muon: bool = True
    ema: float = 0.998
    seed: int = 0


# What pictures need stays as it is.
MEMORY_ALONE = TrackRecipe(
    image_size=512,
    clips=1,
    scenes=0,
    frames=(6, 10),
    stride=3,
    decoder_share=0.0,
    encoder_share=0.0,
    encoder_from=1.0,
    trust_until=0.0,
)

# First at a size where steps are cheap, then at the one that the model runs at, on longer clips.
PARTS = (
    TrackRecipe(fresh=True),
    TrackRecipe(
        image_size=512,
        steps=260,
        clips=1,
        scenes=1,
        frames=(6, 10),
        stride=3,
        learning_rate=6e-4,
        encoder_from=0.0,
        trust_until=0.0,
        seed=1,
    ),
    replace(MEMORY_ALONE, steps=200, learning_rate=6e-4, averaged=True, seed=2),
    replace(MEMORY_ALONE, steps=360, learning_rate=7e-4, seed=3),
)

"""Rows of what image generation takes, in time and in memory."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.results import FOLDER, SpeedRow

__all__ = ["GENERATE", "PLAN_MEMORY", "GenerateRow", "PlanRow"]

GENERATE = FOLDER / "generate.csv"
PLAN_MEMORY = FOLDER / "plan_memory.csv"


@dataclass(frozen=True)
class GenerateRow(SpeedRow):
    """Hold one measurement of one variant of a stage of image generation, as SpeedRow does.

    Attributes:
        case: "mmdit-step" (one forward of the transformer; diffusers' includes what vkrt computes
            once for all steps), "conditioning" (that, for the steps of a generation) or
            "vae-decode" (latent in, pixels out).
        image_size: the longer side of the picture in pixels.
        photo: the picture's width x height in pixels.
        max_rel_error: largest difference of the output to that of the first variant, relative to
            its largest value, checked before anything was timed; None for the first variant.
        tokens: of the text, CLIP's and T5's.
        psnr_db: of the latents that all steps together give, against those in fp32; None where
            only single stages ran.
        diffusers: its version.
    """

    tokens: int
    psnr_db: float | None
    diffusers: str


@dataclass(frozen=True)
class PlanRow:
    """Hold a peak of memory beside what was foreseen.

    Attributes:
        case: "generate" (text to picture, the most of several calls in one process), its parts
            "generate-steps" (everything before the decoder) and "generate-decode", or "load" (all
            weights of the transformer, held at once).
        stored: precision of the file.
        precision: in which it is loaded and run.
        photo: the picture's width x height in pixels.
        calls: generations in the process; the plan is for any of them, and the later ones begin
            with what the earlier ones left loaded.
        held_mib: by the process after its imports, which counts for nothing.
        peak_mib: beyond that.
        foreseen_mib: by Generator.plan, or the bytes of the weights.
        ratio: of the peak to what was foreseen.
        at_least, at_most: what it must be.
        verdict: "reached" or "missed".
    """

    date: str
    commit: str
    cpu: str
    threads: int
    case: str
    model: str
    stored: str
    precision: str
    photo: str
    steps: int | None
    calls: int
    held_mib: float
    peak_mib: float
    foreseen_mib: float
    ratio: float
    at_least: float | None
    at_most: float | None
    verdict: str
    torch: str

"""The steps of a generation: from noise to latents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vkrt.engines.guidance import Guidance
from vkrt.engines.passes import Passes
from vkrt.engines.sampling import Sampler, denoise, inpaint_blend
from vkrt.engines.start import Start
from vkrt.engines.watch import Watch
from vkrt.errors import GenerationError

__all__ = ["Steps", "run_steps"]


@dataclass(frozen=True)
class Steps:
    """Say how latents are stepped down.

    Attributes:
        passes: run the transformer.
        sampler: steps the latents.
        guidance: makes one velocity of the rows.
        whole: steps that the shares of skip-layer guidance are counted of.
        mask: (h, w) float32, 1 where the picture is made anew; None is everywhere.
    """

    passes: Passes
    sampler: Sampler
    guidance: Guidance
    whole: int
    mask: np.ndarray | None = None

    def step(self, index: int, latents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the latents after a step, and the velocity of the step, (N, C, h, w) each."""
        kinds = self.guidance.rows(index, self.whole)
        velocity = self.guidance.combine(kinds, self.passes.velocity(index, kinds, latents))
        return self.sampler.step(index, latents, velocity), velocity


def run_steps(steps: Steps, start: Start, watch: Watch) -> np.ndarray:
    """Return the latents (N, C, h, w) float32 after the last step.

    Raises:
        GenerationError: a step gives NaN or infinity.
        GenerationCancelled: the watch ends it.
    """
    sigmas, count = steps.sampler.sigmas, steps.sampler.steps
    latents = start.latents(float(sigmas[0]))
    watch.check(0, count)
    for index in range(count):
        before = latents
        try:
            latents, velocity = steps.step(index, latents)
        except GenerationError as error:
            # A stage that watches its own numbers can't know where it was called.
            raise GenerationError(f"step {index + 1} of {count}: {error}") from error
        if steps.mask is not None and start.picture is not None:
            after = float(sigmas[index + 1])
            latents = inpaint_blend(latents, start.picture, start.noise, steps.mask, after)
        if not np.isfinite(latents).all():
            raise GenerationError(
                f"the latents are NaN or infinite after step {index + 1} of {count}: load the "
                'model with precision="mmdit=fp32", or lower the guidance and the scale of LoRAs'
            )
        foreseen = denoise(before[0], velocity[0], float(sigmas[index]))
        watch.after(index + 1, count, float(sigmas[index + 1]), foreseen)
    return latents

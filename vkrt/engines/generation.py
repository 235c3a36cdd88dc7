"""One generation: what its request and its inputs become, phase by phase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vkrt.engines.calls import Calls
from vkrt.engines.controlled import Control, canny_pixels
from vkrt.engines.denoising import Steps, run_steps
from vkrt.engines.guidance import COND, SKIP, UNCOND
from vkrt.engines.inputs import Inputs
from vkrt.engines.latents import encode_pixels
from vkrt.engines.passes import Passes
from vkrt.engines.prompt_encoder import PromptEmbedding
from vkrt.engines.request import Request
from vkrt.engines.sampling import make_sampler
from vkrt.engines.schedule import Schedule, first_step, make_schedule
from vkrt.engines.start import Start, make_start, to_model
from vkrt.engines.tables import Tables, make_tables
from vkrt.engines.watch import Watch
from vkrt.models.sd35.config import Sd35Config

__all__ = ["Generation"]

# The condition of edges that a ControlNet may want.
CANNY = "canny"


@dataclass(frozen=True)
class Generation:
    """Make the latents of one request.

    Attributes:
        config: of the model.
        calls: run its stages.
        request: what is wanted.
        inputs: pictures and noise that were given.
        dtype: "fp32", "bf16" or "fp16", what the transformer computes in.
        control_kind: "canny" where the ControlNet's condition is of edges.
    """

    config: Sd35Config
    calls: Calls
    request: Request
    inputs: Inputs
    dtype: str = "fp32"
    control_kind: str = ""

    def run(self, embeddings: Sequence[PromptEmbedding], watch: Watch) -> np.ndarray:
        """Return the latents (N, C, h, w) float32.

        Args:
            embeddings: of the request's texts, in their order.
            watch: follows the steps.

        Raises:
            GenerationError: a step gives NaN or infinity.
            GenerationCancelled: the watch ends it.
        """
        request, schedule = self.request, self.schedule()
        start, condition = self._start(), self._condition()
        tables = self._tables(schedule, embeddings)
        control = None
        if condition is not None:
            depth, scale = self.config.mmdit.depth, request.control_scale
            control = Control(self.calls, condition, tables.control, depth, scale, request.profile)
        steps = Steps(
            self._passes(tables, control),
            make_sampler(request.sampler, schedule.sigmas, request.profile),
            request.guidance,
            schedule.steps if request.profile == "diffusers" else request.steps,
            self.inputs.mask,
        )
        self.calls.enter("sampling")
        return run_steps(steps, start, watch)

    def schedule(self) -> Schedule:
        """Return the noise levels of the steps that are taken."""
        request = self.request
        whole = make_schedule(request.steps, request.shift, request.profile, request.sampler)
        if self.inputs.pixels is None:
            return whole
        return whole.after(first_step(request.steps, request.strength, request.profile))

    def _start(self) -> Start:
        """Return the noise, and the latents of the picture that is to be changed."""
        posterior = None
        if self.inputs.pixels is not None:
            self.calls.enter("picture")
            posterior = encode_pixels(self.calls, self.inputs.pixels, self.config.vae)
        noise = self.inputs.noise
        return make_start(self.request, self.config.vae, self.dtype, posterior, noise)

    def _condition(self) -> np.ndarray | None:
        """Return the latent (1, C, h, w) of what controls the picture, without chance in it."""
        pixels = self.inputs.control
        if pixels is None:
            return None
        self.calls.enter("picture")
        if self.control_kind == CANNY and self.request.profile == "reference":
            pixels = canny_pixels(pixels)
        posterior = encode_pixels(self.calls, pixels, self.config.vae)
        return to_model(posterior.mean, self.config.vae)

    def _tables(self, schedule: Schedule, embeddings: Sequence[PromptEmbedding]) -> Tables:
        context = np.stack([embedding.context for embedding in embeddings])
        pooled = np.stack([embedding.pooled for embedding in embeddings])
        stride = self.config.vae.stride
        size = self.request.height // stride, self.request.width // stride
        controlled = self.inputs.control is not None
        timesteps = schedule.timesteps
        return make_tables(
            self.calls, self.config.mmdit, timesteps, (context, pooled), size, controlled
        )

    def _passes(self, tables: Tables, control: Control | None) -> Passes:
        request = self.request
        place = {text: index for index, text in enumerate(request.texts)}
        prompts = [place[text] for text in request.prompts]
        texts = {COND: prompts, SKIP: prompts}
        if request.guidance.on:
            texts[UNCOND] = [place[text] for text in request.negatives]
        layers = request.guidance.skip_layers
        return Passes(self.calls, self.config.mmdit, tables, texts, layers, control)

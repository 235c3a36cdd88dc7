"""The engine of Stable Diffusion 3.5: from prompts to pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from vkrt.arguments import flag, instance, number, refuse_unknown, text
from vkrt.arguments import path as file_path
from vkrt.backends.base import Backend
from vkrt.engines.adapters import Adapters
from vkrt.engines.budget import Budget
from vkrt.engines.calls import Calls
from vkrt.engines.generation import Generation
from vkrt.engines.guidance import LARGEST_SCALE
from vkrt.engines.inputs import Inputs, read_inputs
from vkrt.engines.latents import decode_latents
from vkrt.engines.origin import Origin, forget, unload
from vkrt.engines.prompt_encoder import PromptEmbedding, PromptEncoder, usual_length
from vkrt.engines.request import Request, read_request, smallest_side
from vkrt.engines.schedule import check_profile
from vkrt.engines.watch import StepInfo, Watch, read_watch
from vkrt.errors import CheckpointError, GenerationError, PromptError
from vkrt.forks import HomeLock
from vkrt.media.image import Photo
from vkrt.media.picture import KEY, to_picture
from vkrt.media.text import Tokenizers
from vkrt.memory.plan import Plan
from vkrt.memory.residency import Residency
from vkrt.models.sd35.config import Sd35Config
from vkrt.stage import Stage

__all__ = ["Generator"]

PROMPT_CACHE_BYTES = 128 * 1024**2
# What the arguments of diffusers' pipelines are called here.
OF_DIFFUSERS = {
    "negative_prompt": "negative",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "generator": "seed",
    "num_images_per_prompt": "count",
    "mask_image": "mask",
    "control_image": "control",
    "controlnet_conditioning_scale": "control_scale",
    "max_sequence_length": "t5_length",
    "skip_guidance_layers": "skip_layers",
    "skip_layer_guidance_scale": "skip_scale",
    "callback_on_step_end": "on_step",
}


class Generator:
    """Make pictures with one model of Stable Diffusion 3.5; calls take turns.

    Attributes:
        name: catalog name of the model.
        config: its shape.
        origin: how it was loaded; pickling it is loading it again.

    Args:
        stages: by name; those of parts that are not there are missing.
        backend_of: the backend of a stage, by its name; all are of one device.
        tokenizers: of the text encoders.
        budget: what the weights take, and what everything may take.
        control_kind: "canny" for a ControlNet of edges.
        adapters: puts LoRAs on; None where the stages can't be changed.
        prompt_cache_bytes: bound of the cache of encoded prompts; 0 turns it off.
    """

    def __init__(
        self,
        name: str,
        config: Sd35Config,
        stages: Mapping[str, Stage],
        backend_of: Callable[[str], Backend],
        tokenizers: Tokenizers,
        *,
        budget: Budget | None = None,
        control_kind: str = "",
        adapters: Adapters | None = None,
        prompt_cache_bytes: int = PROMPT_CACHE_BYTES,
    ) -> None:
        self.name = name
        self.config = config
        self._backend_of = backend_of
        self._budget = budget or Budget()
        self._control_kind = control_kind
        self._adapters = adapters
        self._residency = Residency(stages, backend_of)
        self._prompts = PromptEncoder(config, tokenizers, prompt_cache_bytes)
        self._lock = HomeLock()
        self.origin: Origin | None = None

    def generate(
        self,
        prompt: str | Sequence[str],
        negative: str | Sequence[str] = "",
        width: int | None = None,
        height: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int | None = None,
        count: int = 1,
        image: Photo | None = None,
        strength: float = 0.6,
        mask: Photo | None = None,
        control: Photo | None = None,
        control_scale: float = 1.0,
        sampler: str | None = None,
        shift: float = 3.0,
        profile: str = "reference",
        t5_length: int | None = None,
        skip_layers: Sequence[int] | None = None,
        skip_scale: float | None = None,
        on_step: Callable[[StepInfo], object] | None = None,
        preview: bool = False,
        cancelled: Callable[[], bool] | None = None,
        **unknown: Any,
    ) -> list[Image.Image]:
        """Return pictures of a prompt; `info["parameters"]` of each makes it again.

        Args:
            prompt: a text, or a list of them.
            negative: what guidance leads away from: one text for all prompts or one for each.
            width, height: in pixels, multiples of 16; None is 1024, or the size of `image`.
            steps, guidance, sampler: None is what the model, or the ControlNet, was made for;
                guidance and other scales are at most 1000. At guidance of at most 1 there is none,
                and a step takes half as long. Samplers are "euler" and "dpmpp_2m".
            seed: of the first picture, the next ones have the next seeds; None draws one.
            count: pictures of each prompt; at most 1000 of all prompts together.
            image: a picture to change.
            strength: how much of it changes: above 0, and 1 is all of it.
            mask: of the size of `image`: where it is white, the picture changes.
            control: a condition for the ControlNet, such as a picture of edges.
            control_scale: how strongly it leads.
            shift: of the noise levels towards noise.
            profile: "reference" or "diffusers": whose conventions count where they differ.
            t5_length: tokens of T5, up to 512; None is up to the profile.
            skip_layers, skip_scale: blocks that skip-layer guidance leaves out, and its scale.
            on_step: called behind each step; if it returns False, the generation ends.
            preview: give on_step a small picture of each step.
            cancelled: asked behind each step; if it returns True, the generation ends.

        Raises:
            PromptError: a prompt is no text, or a mask does not fit its picture.
            ImageError: a picture can't be read.
            GenerationError: a number is not possible, there is too little memory, or the model
                gives NaN.
            GenerationCancelled: on_step or cancelled ended it.
            CheckpointError: weights that this needs were not given.
        """
        if unknown:
            *known, _ = signature(self.generate).parameters
            refuse_unknown("generate", unknown, known, GenerationError, OF_DIFFUSERS)
        watch = read_watch(on_step, preview, cancelled)
        inputs = read_inputs(self.config, width, height, image, mask, control)
        request = read_request(
            self.config,
            prompt,
            negative,
            *inputs.size,
            steps=steps,
            guidance=guidance,
            seed=seed,
            count=count,
            strength=strength,
            sampler=sampler,
            shift=shift,
            profile=profile,
            t5_length=t5_length,
            skip_layers=skip_layers,
            skip_scale=skip_scale,
            control_scale=control_scale,
            controlled=control is not None,
        )
        with self._lock:
            latents = self.sample(request, inputs, watch)
            return self._decode(request, inputs, latents)

    def sample(self, request: Request, inputs: Inputs, watch: Watch | None = None) -> np.ndarray:
        """Return the latents (N, C, h, w) float32 of a request, as the transformer has them.

        Args:
            request: of vkrt.engines.request.read_request.
            inputs: of vkrt.engines.inputs.read_inputs.
            watch: follows the steps.

        Raises:
            GenerationError, GenerationCancelled, CheckpointError: as in generate.
        """
        instance("request", request, Request, kind=GenerationError)
        instance("inputs", inputs, Inputs, kind=GenerationError)
        watch = Watch() if watch is None else instance("watch", watch, Watch, kind=GenerationError)
        with self._lock:
            calls, length = self._calls(request, inputs)
            embeddings = self._encode(calls, request, length)
            kind, dtype = self._control_kind, self._budget.noise_dtype
            generation = Generation(self.config, calls, request, inputs, dtype, kind)
            return generation.run(embeddings, watch)

    def _decode(self, request: Request, inputs: Inputs, latents: np.ndarray) -> list[Image.Image]:
        """Return the pictures of latents (N, C, h, w), with what makes each of them again."""
        calls, length = self._calls(request, inputs)
        calls.enter("decode")
        pictures = []
        for index, latent in enumerate(latents):
            picture = to_picture(decode_latents(calls, latent, self.config.vae))
            picture.info[KEY] = self._parameters(request, inputs, length, index)
            pictures.append(picture)
        calls.enter("")
        return pictures

    def encode_prompt(
        self, prompt: str, profile: str = "reference", t5_length: int | None = None
    ) -> PromptEmbedding:
        """Return what the text encoders make of a prompt, and keep it for later.

        Args:
            prompt, profile, t5_length: as in generate.

        Raises:
            PromptError, GenerationError, CheckpointError: as in generate.
        """
        side = smallest_side(self.config)
        request = read_request(
            self.config,
            text("prompt", prompt, kind=PromptError),
            width=side,
            height=side,
            guidance=0.0,
            profile=profile,
            t5_length=t5_length,
        )
        with self._lock:
            calls, length = self._calls(request, Inputs((side, side)))
            return self._encode(calls, request, length)[0]

    def _encode(self, calls: Calls, request: Request, length: int) -> list[PromptEmbedding]:
        """Return the embeddings of a request's texts."""
        variant = "" if self._adapters is None else self._adapters.key
        return self._prompts.encode(calls, request.texts, length, request.profile, variant)

    def load_lora(self, path: str | os.PathLike[str], scale: float = 1.0) -> None:
        """Put a LoRA on the weights, besides those that are on them.

        Args:
            path: of its file.
            scale: how strongly, from -1000 to 1000; 1 is as it was trained.

        Raises:
            CheckpointError: it is damaged or for another model; then nothing was changed.
            GenerationError: these weights can't be changed.
        """
        with self._lock:
            file = file_path("path", path, kind=CheckpointError)
            strength = number("scale", scale, -LARGEST_SCALE, LARGEST_SCALE, kind=GenerationError)
            self._changeable().add(file, strength, self._residency.fixed())

    def unload_loras(self) -> None:
        """Take all LoRAs off: the weights are as they were, bit for bit."""
        if self._adapters is not None:
            with self._lock:
                self._adapters.clear(self._residency.fixed())

    def _changeable(self) -> Adapters:
        if self._adapters is None:
            raise GenerationError(
                "a LoRA changes weights, which those of a bundle can't be: load the checkpoint "
                'with backend="eager"'
            )
        return self._adapters

    def plan(
        self,
        width: int = 1024,
        height: int = 1024,
        count: int = 1,
        image: bool = False,
        control: bool = False,
        **numbers: Any,
    ) -> Plan:
        """Return how a generation would go within memory; nothing is loaded.

        Args:
            width, height, count: as in generate.
            image, control: whether there would be a picture to change, or a condition.
            numbers: others of generate, such as steps, guidance and t5_length.
        """
        image, control = (
            flag(name, value, kind=GenerationError)
            for name, value in (("image", image), ("control", control))
        )
        length = numbers.pop("t5_length", None)
        if length is None:
            length = usual_length(check_profile(numbers.get("profile", "reference")))
        numbers = {**numbers, "count": count, "controlled": control, "t5_length": length}
        request = read_request(self.config, "", "-", width, height, **numbers)
        given = np.empty(0, np.float32)
        inputs = Inputs(
            (request.width, request.height),
            given if image else None,
            control=given if control else None,
        )
        return self._plan(request, inputs)[0]

    def _plan(self, request: Request, inputs: Inputs) -> tuple[Plan, int]:
        """Return the plan of a request, and the tokens of T5."""
        with_t5 = "t5" in self._residency
        length = self._prompts.length(request.texts, request.profile, request.t5_length, with_t5)
        return self._budget.plan(self.config, request, inputs, length, with_t5), length

    def _calls(self, request: Request, inputs: Inputs) -> tuple[Calls, int]:
        """Return what runs the stages of a request, and the tokens of T5.

        Raises:
            CheckpointError: a stage is missing.
            GenerationError: there is too little memory.
        """
        plan, length = self._plan(request, inputs)
        self._residency.require(plan.weights)
        self._budget.check(plan, request)
        return Calls(self._residency, self._backend_of, plan), length

    def _parameters(
        self, request: Request, inputs: Inputs, length: int, index: int
    ) -> dict[str, Any]:
        """Return what makes picture `index` again, in what JSON can hold."""
        made = {"model": self.name, **request.parameters(index), "t5_length": length}
        if inputs.pixels is not None:
            made["strength"] = request.strength
        if inputs.control is not None:
            made["control_scale"] = request.control_scale
        if self._adapters is not None and self._adapters.named:
            made["loras"] = list(self._adapters.named)
        return made

    def close(self) -> None:
        """Release the weights, the cache and what the backends hold; it can't be used any more."""
        if not self._lock.home.is_here:
            return
        forget(self)
        with self._lock:
            self._residency.close()
            self._prompts.clear()

    def __reduce__(self) -> Any:
        if self._adapters is not None and self._adapters.named:
            raise GenerationError(
                "a model with LoRAs on it can't be pickled: load it and them in the other process "
                "(vkrt.load, load_lora), or unload_loras() first"
            )
        return unload(self)

    def __enter__(self) -> Generator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

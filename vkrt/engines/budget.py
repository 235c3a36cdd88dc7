"""The memory of a generation: which stages it runs, how large it is, and the plan of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vkrt.engines.inputs import Inputs
from vkrt.engines.noise import DTYPES
from vkrt.engines.request import Request
from vkrt.errors import GenerationError
from vkrt.memory.activations import Shape
from vkrt.memory.plan import Plan, make_plan
from vkrt.models.sd35.config import ControlNetConfig, Sd35Config

__all__ = ["Budget", "stages_used"]

ALWAYS = ("clip_l", "clip_g", "conditioning", "positions", "vae_decoder")
CONTROLLED = ("controlnet_conditioning", "controlnet", "mmdit_controlled", "vae_encoder")
NUMBER_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
MIB = 1024**2


@dataclass(frozen=True)
class Budget:
    """State what weights take, and what they all may take.

    Attributes:
        weights: bytes of the weights of each stage.
        precisions: "fp32", "bf16" or "fp16" of each stage; "fp32" where not stated.
        limit: bytes that stages may use; None is no limit.
        streams: whether weights can be streamed from the host, block by block.
        control: shape of the ControlNet; None without one.
    """

    weights: Mapping[str, int] = field(default_factory=dict)
    precisions: Mapping[str, str] = field(default_factory=dict)
    limit: int | None = None
    streams: bool = False
    control: ControlNetConfig | None = None

    @property
    def number_bytes(self) -> dict[str, int]:
        """Return the bytes of a number that each stage computes with."""
        return {stage: NUMBER_BYTES.get(name, 4) for stage, name in self.precisions.items()}

    @property
    def noise_dtype(self) -> str:
        """Return what noise is rounded to: what the transformer computes in."""
        precision = self.precisions.get("mmdit", "")
        return precision if precision in DTYPES else "fp32"

    def plan(
        self, config: Sd35Config, request: Request, inputs: Inputs, length: int, with_t5: bool
    ) -> Plan:
        """Return the plan of a generation; see Plan.fits.

        Args:
            config: of the model.
            request, inputs: of the generation.
            length: tokens of T5.
            with_t5: whether the model has it.
        """
        guidance, controlled = request.guidance, inputs.control is not None
        shape = Shape(
            config,
            request.width,
            request.height,
            request.steps,
            len(request.texts),
            length,
            len(request.prompts) * (1 + guidance.on + guidance.skips),
            control=self.control if controlled else None,
        )
        used = stages_used(controlled, inputs.pixels is not None, with_t5)
        return make_plan(shape, self.weights, used, self.limit, self.number_bytes)

    def check(self, plan: Plan, request: Request) -> None:
        """Refuse a generation that can't be made within the limit.

        Raises:
            GenerationError: it is too large, or its weights are and can't be streamed.
        """
        limit = self.limit
        if limit is None or (plan.fits(limit) and (self.streams or not plan.streamed)):
            return
        whole = max(
            phase.activations + max(plan.weights[stage] for stage in phase.stages)
            for phase in plan.phases.values()
        )
        raise GenerationError(
            f"{request.width}x{request.height} takes {whole / MIB:.0f} MiB, {plan.floor / MIB:.0f} "
            f"of them besides weights, and the memory limit is {limit / MIB:.0f} MiB: raise it, or "
            "take a smaller size"
        )


def stages_used(controlled: bool, pictured: bool, with_t5: bool) -> list[str]:
    """Return the stages that a generation runs.

    Args:
        controlled: a ControlNet leads it.
        pictured: it changes a picture.
        with_t5: prompts go through T5 too.
    """
    names = [*ALWAYS, *(CONTROLLED if controlled else ("mmdit",))]
    if pictured and not controlled:
        names.append("vae_encoder")
    return [*names, "t5"] if with_t5 else names

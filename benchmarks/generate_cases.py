"""The cases of image generation: who takes part in each, all with the same random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from benchmarks.arithmetic import count, stage_flops
from benchmarks.peers.diffusers_sd35 import (
    DiffusersDecode,
    DiffusersStep,
    empty_autoencoder,
    empty_transformer,
)
from benchmarks.peers.ours_sd35 import OursConditioning, OursDecode, OursStep, StepInputs
from benchmarks.random_sd35 import random_part
from vkrt.backends.policy import StageBackends, parse_policy
from vkrt.bundle import Bundle
from vkrt.models.sd35.config import Sd35Config
from vkrt.models.sd35.stages import PARTS, stage_of
from vkrt.options import Options
from vkrt.stage import Stage
from vkrt.weights.sd35_modules import build_part

__all__ = ["BUNDLED", "CASES", "PEERS", "Entrant", "Setting", "flops_of"]

PEERS = ("vkrt", "vkrt-onnx", "vkrt-openvino", "diffusers")
# Variants that run a bundle, and their backends.
BUNDLED = {"vkrt-onnx": "onnx", "vkrt-openvino": "openvino"}
STEPS = 28  # that the case "conditioning" is for

Run = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Setting:
    """Say what is run.

    Attributes:
        model: catalog name, and `config` its shape.
        width, height: of the picture, in pixels.
        tokens: of the text, CLIP's and T5's.
        peers: names of PEERS.
        threads: of each.
        bundle: what the variants of bundles run; None without them.
    """

    model: str
    config: Sd35Config
    width: int
    height: int
    tokens: int
    peers: tuple[str, ...]
    threads: int
    bundle: Bundle | None = None

    def inputs(self) -> StepInputs:
        """Return random inputs of a forward of the transformer."""
        return StepInputs.draw(self.config, self.width, self.height, self.tokens)

    def backends(self, name: str = "eager") -> StageBackends:
        """Return the backends of stages as vkrt.load makes them, in fp32 where they decide."""
        options = Options(backend=name, device="cpu", threads=self.threads)
        return StageBackends(options, parse_policy("fp32", tuple(PARTS)))

    def has(self, *names: str) -> bool:
        """Tell whether any of these takes part."""
        return any(name in self.peers for name in names)

    def kind_of(self, name: str) -> tuple[str, str]:
        """Return the backend and the precision of a peer."""
        if name in BUNDLED and self.bundle is not None:
            return BUNDLED[name], self.bundle.header.precision
        return "eager", "fp32"

    def exported(self) -> dict[str, tuple[Bundle, StageBackends]]:
        """Return the bundle and the backends of each variant that runs one."""
        found = self.bundle
        names = [name for name in BUNDLED if name in self.peers]
        return {name: (found, self.backends(BUNDLED[name])) for name in names if found}


@dataclass(frozen=True)
class Entrant:
    """Hold one variant of a case, ready to run.

    Attributes:
        backend, precision: as in SpeedRow.
        flops: operations of a run.
        run: does what is timed, and returns its output.
    """

    backend: str
    precision: str
    flops: int
    run: Run


def random_stage(name: str, config: Sd35Config) -> Stage:
    """Return a stage with random weights."""
    return stage_of(name, random_part(PARTS[name], config), config)


def flops_of(stage: str, config: Sd35Config, **dimensions: int) -> int:
    """Return the operations of a stage of vkrt's; no weights are drawn."""
    return stage_flops(stage_of(stage, build_part(PARTS[stage], config), config), **dimensions)


def plain_step_flops(setting: Setting) -> int:
    """Return the operations of a forward of diffusers' transformer."""
    model, inputs = empty_transformer(setting.config.mmdit), setting.inputs()
    arrays = (inputs.latent, inputs.timesteps, inputs.context, inputs.pooled)
    latent, timesteps, context, pooled = (torch.from_numpy(a).to("meta") for a in arrays)
    return count(
        lambda: model(
            hidden_states=latent,
            timestep=timesteps,
            encoder_hidden_states=context,
            pooled_projections=pooled,
        )
    )


def plain_decode_flops(setting: Setting) -> int:
    """Return the operations of diffusers' decoder."""
    model = empty_autoencoder(setting.config.vae)
    latent = torch.empty(setting.inputs().latent.shape, device="meta")
    return count(lambda: model.decode(latent))


def enter_step(setting: Setting) -> dict[str, Entrant]:
    """Return one forward of the transformer, what vkrt computes once for all steps left out."""
    config, inputs = setting.config, setting.inputs()
    before = [random_stage(name, config) for name in ("conditioning", "positions")]
    backend = setting.backends()("mmdit")
    conditioned = OursConditioning(before, config.mmdit, backend).condition(inputs)
    work = flops_of(
        "mmdit", config, batch=1, patches=len(conditioned.positions), length=setting.tokens
    )
    steps: dict[str, Run] = {}
    if setting.has("vkrt", "diffusers"):
        stage = random_stage("mmdit", config)
        steps["vkrt"] = partial(OursStep(stage, backend, conditioned), inputs.latent)
        if setting.has("diffusers"):
            modules = [each.module for each in (*before, stage)]
            theirs = DiffusersStep(config.mmdit, modules, inputs)
            steps["diffusers"] = partial(theirs, inputs.latent)
    before.clear()  # a third of the weights: vkrt's own step needs them no more
    for name, (bundle, ours) in setting.exported().items():
        step = OursStep(bundle.stages["mmdit"], ours("mmdit"), conditioned)
        steps[name] = partial(step, inputs.latent)
    return entrants_of(steps, setting, work, plain_step_flops)


def enter_conditioning(setting: Setting) -> dict[str, Entrant]:
    """Return what vkrt computes before the first step, for all steps."""
    if not setting.has("vkrt"):
        return {}
    config, inputs = setting.config, setting.inputs()
    stages = [random_stage(name, config) for name in ("conditioning", "positions")]
    ours = OursConditioning(stages, config.mmdit, setting.backends()("conditioning"))
    timesteps = np.linspace(1000, 10, STEPS, dtype=np.float32)
    work = flops_of("conditioning", config, steps=STEPS, batch=1, length=setting.tokens)
    return {"vkrt": Entrant("eager", "fp32", work, lambda: ours.tables(inputs, timesteps)[0])}


def enter_decode(setting: Setting) -> dict[str, Entrant]:
    """Return the decoder, from a latent to pixels."""
    config, latent = setting.config, setting.inputs().latent
    height, width = latent.shape[2:]
    work = flops_of("vae_decoder", config, batch=1, height=height, width=width)
    decodes: dict[str, Run] = {}
    if setting.has("vkrt", "diffusers"):
        stage = random_stage("vae_decoder", config)
        ours = OursDecode(stage, setting.backends()("vae_decoder"))
        decodes["vkrt"] = partial(ours, latent)
        if setting.has("diffusers"):
            decodes["diffusers"] = partial(DiffusersDecode(config.vae, stage.module), latent)
    for name, (bundle, backends) in setting.exported().items():
        exported = OursDecode(bundle.stages["vae_decoder"], backends("vae_decoder"))
        decodes[name] = partial(exported, latent)
    return entrants_of(decodes, setting, work, plain_decode_flops)


def entrants_of(
    runs: Mapping[str, Run], setting: Setting, work: int, plain: Callable[[Setting], int]
) -> dict[str, Entrant]:
    """Return those that take part, in the order of PEERS.

    Args:
        runs: what each does.
        work: operations of vkrt's form of the model.
        plain: gives those of diffusers'.
    """
    entrants = {}
    for name in PEERS:
        if name not in runs or not setting.has(name):
            continue
        backend, precision = setting.kind_of(name)
        flops = plain(setting) if name == "diffusers" else work
        entrants[name] = Entrant(backend, precision, flops, runs[name])
    return entrants


CASES: dict[str, Callable[[Setting], dict[str, Entrant]]] = {
    "mmdit-step": enter_step,
    "conditioning": enter_conditioning,
    "vae-decode": enter_decode,
}

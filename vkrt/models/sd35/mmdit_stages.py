"""The stages of the transformer: conditioning, positions, mmdit and mmdit_controlled."""

from __future__ import annotations

from torch import nn

from vkrt.models.sd35.config import MmditConfig
from vkrt.models.sd35.layout import mmdit_widths
from vkrt.models.sd35.mmdit import ControlledDenoiser, Denoiser
from vkrt.stage import Port, Stage

__all__ = [
    "TIMESTEPS",
    "conditioning_stage",
    "controlled_stage",
    "mmdit_stage",
    "patches_port",
    "positions_port",
    "positions_stage",
]

TIMESTEPS = Port("timesteps", ("steps",), bounds=(0, 1000), exact=True)


def patches_port(name: str, config: MmditConfig) -> Port:
    """Return a port of patches, or of their velocities."""
    return Port(name, ("batch", "patches", config.patch_dim))


def positions_port(config: MmditConfig) -> Port:
    """Return the port of the positions of all patches."""
    return Port("positions", ("patches", config.dim))


def conditioning_stage(module: nn.Module, config: MmditConfig) -> Stage:
    """Return the stage that turns steps and prompts into tables and context."""
    inputs = (
        TIMESTEPS,
        Port("pooled", ("batch", config.pooled_dim)),
        Port("context", ("batch", "length", config.context_dim)),
    )
    outputs = (
        Port("table", ("steps", "batch", sum(mmdit_widths(config)))),
        Port("embedded", ("batch", "length", config.dim)),
    )
    return Stage("conditioning", module, inputs, outputs)


def positions_stage(module: nn.Module, config: MmditConfig) -> Stage:
    """Return the stage that cuts the positions of a picture from the stored ones."""
    bounds = (0, config.pos_embed_max_size - 1)
    inputs = (
        Port("rows", ("rows",), "int64", bounds),
        Port("columns", ("columns",), "int64", bounds),
    )
    return Stage("positions", module, inputs, (Port("positions", ("rows", "columns", config.dim)),))


def mmdit_stage(module: nn.Module, config: MmditConfig) -> Stage:
    """Return the stage that tells the velocity of noisy latents."""
    return Stage("mmdit", module, denoiser_inputs(config), (patches_port("velocity", config),))


def controlled_stage(module: Denoiser, config: MmditConfig) -> Stage:
    """Return the stage that does so led by the residuals of a ControlNet.

    Args:
        module: a Denoiser, the same as of the stage without.
        config: its shape.
    """
    inputs = (
        *denoiser_inputs(config),
        Port("residuals", ("layers", "batch", "patches", config.dim)),
        # Below the number of layers, of which there is one at least.
        Port("index", (config.depth,), "int64", bounds=(0, 0)),
        Port("scale", (config.depth,)),
    )
    outputs = (patches_port("velocity", config),)
    return Stage("mmdit_controlled", ControlledDenoiser(module), inputs, outputs)


def denoiser_inputs(config: MmditConfig) -> tuple[Port, ...]:
    """Return what the denoiser takes with and without a ControlNet."""
    return (
        patches_port("patches", config),
        positions_port(config),
        Port("context", ("batch", "length", config.dim)),
        Port("table", ("batch", sum(mmdit_widths(config)))),
    )

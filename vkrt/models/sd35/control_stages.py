"""The stages of a ControlNet: controlnet_conditioning and controlnet."""

from __future__ import annotations

from vkrt.models.sd35.config import MmditConfig
from vkrt.models.sd35.controlnet import ControlNet, ControlNetConditioning
from vkrt.models.sd35.layout import controlnet_widths
from vkrt.models.sd35.mmdit_stages import TIMESTEPS, patches_port, positions_port
from vkrt.stage import Port, Stage

__all__ = ["controlnet_conditioning_stage", "controlnet_stage"]


def controlnet_conditioning_stage(module: ControlNetConditioning) -> Stage:
    """Return the stage that turns steps and pooled prompts into tables."""
    config = module.config
    inputs = TIMESTEPS, Port("pooled", ("batch", config.pooled_dim))
    outputs = (Port("table", ("steps", "batch", sum(controlnet_widths(config)))),)
    return Stage("controlnet_conditioning", module, inputs, outputs)


def controlnet_stage(module: ControlNet, mmdit: MmditConfig) -> Stage:
    """Return the stage that turns a condition into residuals for the model of a config."""
    config = module.config
    inputs = (
        patches_port("patches", mmdit),
        positions_port(mmdit),
        Port("condition", ("batch", "patches", config.channels * config.patch**2)),
        Port("table", ("batch", sum(controlnet_widths(config)))),
    )
    outputs = (Port("residuals", (config.depth, "batch", "patches", config.dim)),)
    return Stage("controlnet", module, inputs, outputs)

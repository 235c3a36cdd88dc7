"""Build the parts of Stable Diffusion 3.5 that have weights, without memory for them."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from vkrt.models.sd35.clip import ClipText
from vkrt.models.sd35.conditioning import Conditioning
from vkrt.models.sd35.config import ControlNetConfig, Sd35Config
from vkrt.models.sd35.controlnet import ControlNet, ControlNetConditioning
from vkrt.models.sd35.mmdit import Denoiser
from vkrt.models.sd35.positions import PositionTable
from vkrt.models.sd35.t5 import T5Encoder
from vkrt.models.sd35.vae_decoder import VaeDecoder
from vkrt.models.sd35.vae_encoder import VaeEncoder
from vkrt.weights.skip_init import SkipInit

__all__ = ["build_part", "shapes_of_part"]

BUILDERS: dict[str, Callable[[Sd35Config, ControlNetConfig], nn.Module]] = {
    "clip_l": lambda config, control: ClipText(config.clip_l),
    "clip_g": lambda config, control: ClipText(config.clip_g),
    "t5": lambda config, control: T5Encoder(config.t5),
    "conditioning": lambda config, control: Conditioning(config.mmdit),
    "positions": lambda config, control: PositionTable(config.mmdit),
    "denoiser": lambda config, control: Denoiser(config.mmdit),
    "controlnet_conditioning": lambda config, control: ControlNetConditioning(control),
    "controlnet": lambda config, control: ControlNet(control, config.mmdit),
    "vae_encoder": lambda config, control: VaeEncoder(config.vae),
    "vae_decoder": lambda config, control: VaeDecoder(config.vae),
}


def build_part(
    part: str, config: Sd35Config, controlnet: ControlNetConfig | None = None
) -> nn.Module:
    """Return the module of a part; its parameters are on the meta device, without values.

    Args:
        part: such as "denoiser".
        config: of the whole model.
        controlnet: of a ControlNet, where the part is of one.
    """
    with SkipInit(allocate=False):
        return BUILDERS[part](config, controlnet or ControlNetConfig())


def shapes_of_part(
    part: str, config: Sd35Config, controlnet: ControlNetConfig | None = None
) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor that a part loads, by name. Arguments as in build_part."""
    state = build_part(part, config, controlnet).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}

"""Small transformers and LoRAs on them, in every way of writing one, for the tests of LoRA."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vkrt.models.sd35.conditioning import Conditioning
from vkrt.models.sd35.config import MmditConfig
from vkrt.models.sd35.mmdit import Denoiser

State = dict[str, Tensor]
# Up and down of a layer, by the path that diffusers gives its weight.
Layers = Mapping[str, tuple[Tensor, Tensor]]

CONFIG = MmditConfig(
    depth=3,
    heads=2,
    head_dim=8,
    dual_blocks=(0,),
    pos_embed_max_size=8,
    channels=4,
    context_dim=12,
    pooled_dim=10,
)


def make_parts(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, nn.Module]:
    """Return the two parts of the transformer with random weights."""
    torch.manual_seed(seed)
    parts: dict[str, nn.Module] = {
        "denoiser": Denoiser(CONFIG),
        "conditioning": Conditioning(CONFIG),
    }
    return {name: part.to(dtype).requires_grad_(False) for name, part in parts.items()}


def state_of(parts: Mapping[str, nn.Module]) -> State:
    """Return a copy of the weights of all parts, by official names."""
    return {k: v.clone() for part in parts.values() for k, v in part.state_dict().items()}


def to_diffusers(official: State) -> State:
    """Return a transformer's weights as diffusers' own conversion makes them."""
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

    side = CONFIG.pos_embed_max_size
    positions = torch.zeros(1, side * side, CONFIG.dim)
    return convert_sd3_transformer_checkpoint_to_diffusers({"pos_embed": positions, **official})


def random_layers(rank: int = 3, seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """Return a change of every matrix; sums of its products are exact in float32."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randint(-8, 9, shape, generator=generator) / 16

    return {
        name.removesuffix(".weight"): (
            draw(weight.shape[0], rank, *[1] * (weight.ndim - 2)),
            draw(rank, *weight.shape[1:]),
        )
        for name, weight in to_diffusers(state_of(make_parts())).items()
        if name.endswith(".weight") and weight.ndim > 1
    }


def write(path: Path, tensors: State, metadata: dict[str, str] | None = None) -> Path:
    """Write a LoRA file and return its path."""
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata)
    return path


def renamed(layers: Layers, up: str, down: str, alpha: str | None = None) -> State:
    """Return layers by names made of their paths: {0} with dots, {1} with underscores."""
    tensors = {}
    for path, (rise, fall) in layers.items():
        flat = path.replace(".", "_")
        tensors[up.format(path, flat)] = rise
        tensors[down.format(path, flat)] = fall
        if alpha is not None:
            tensors[alpha.format(path, flat)] = torch.tensor(float(fall.shape[0]))
    return tensors


def official_layers(layers: Layers) -> dict[str, tuple[Tensor, Tensor]]:
    """Return layers on the official, fused weights: downs stacked, ups where their rows are.

    Which rows those are is what diffusers' conversion does to weights that hold their numbers.
    """
    weights = state_of(make_parts())
    names = [name for name in weights if name.endswith(".weight") and weights[name].ndim > 1]
    count = 1000
    for i, name in enumerate(names):
        rows = torch.arange(weights[name].shape[0], dtype=torch.float32) + i * count
        weights[name] = rows.view(-1, *[1] * (weights[name].ndim - 1)).expand_as(weights[name])
    fused: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
    for name, numbers in to_diffusers(weights).items():
        path = name.removesuffix(".weight")
        if path in layers:
            rows = numbers.flatten(1)[:, 0].long()
            place = names[int(rows[0]) // count]
            fused.setdefault(place, []).append((rows % count, *layers[path]))
    found = {}
    for name, pieces in fused.items():
        downs = torch.cat([down for _, _, down in pieces])
        ups = torch.zeros(weights[name].shape[0], downs.shape[0])
        start = 0
        for rows, up, down in pieces:
            ups[rows, start : start + down.shape[0]] = up.flatten(1)
            start += down.shape[0]
        found[name.removesuffix(".weight")] = (ups.view(*ups.shape, *[1] * (downs.ndim - 2)), downs)
    return found


def peft_file(layers: Layers) -> State:
    return renamed(layers, "transformer.{0}.lora_B.weight", "transformer.{0}.lora_A.weight")


def kohya_file(layers: Layers) -> State:
    names = (
        "lora_unet_{1}.lora_up.weight",
        "lora_unet_{1}.lora_down.weight",
        "lora_unet_{1}.alpha",
    )
    return renamed(official_layers(layers), *names)


def form(up: str, down: str, alpha: str | None = None) -> Callable[[Layers], State]:
    """Return what writes layers under the names of diffusers in some form."""
    return lambda layers: renamed(layers, up, down, alpha)


# The same LoRA, as each trainer would have written it.
FORMS: dict[str, Callable[[Layers], State]] = {
    "peft": peft_file,
    "named adapter": form(
        "transformer.{0}.lora_B.default.weight", "transformer.{0}.lora_A.default.weight"
    ),
    "bare": form("{0}.lora_B.weight", "{0}.lora_A.weight"),
    "base model": form("base_model.model.{0}.lora_B.weight", "base_model.model.{0}.lora_A.weight"),
    "old diffusers": form("transformer.{0}.lora.up.weight", "transformer.{0}.lora.down.weight"),
    "onetrainer": form(
        "lora_transformer_{1}.lora_up.weight",
        "lora_transformer_{1}.lora_down.weight",
        "lora_transformer_{1}.alpha",
    ),
    "onetrainer, dotted": form(
        "lora_transformer.{0}.lora_up.weight",
        "lora_transformer.{0}.lora_down.weight",
        "lora_transformer.{0}.alpha",
    ),
    "lycoris": form(
        "lycoris_{1}.lora_up.weight", "lycoris_{1}.lora_down.weight", "lycoris_{1}.alpha"
    ),
    "kohya": kohya_file,
    "official": lambda layers: renamed(
        official_layers(layers),
        "diffusion_model.{0}.lora_B.weight",
        "diffusion_model.{0}.lora_A.weight",
    ),
}

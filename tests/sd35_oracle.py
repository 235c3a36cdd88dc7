"""The transformer of Stable Diffusion 3.5 in diffusers, with random weights, and our twin of it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from diffusers import SD3ControlNetModel, SD3Transformer2DModel
from torch import Tensor, nn

from vkrt.models.sd35.conditioning import Conditioning
from vkrt.models.sd35.config import ControlNetConfig, MmditConfig
from vkrt.models.sd35.controlnet import ControlNet, ControlNetConditioning
from vkrt.models.sd35.mmdit import Denoiser
from vkrt.models.sd35.positions import PositionTable

__all__ = [
    "fold",
    "official_controlnet",
    "official_mmdit",
    "oracle_controlnet",
    "oracle_mmdit",
    "places",
    "randomize",
    "relative_error",
    "tiny_controlnet",
    "tiny_mmdit",
    "twin_controlnet",
    "twin_mmdit",
    "unfold",
]


def tiny_mmdit(depth: int = 3, dual: tuple[int, ...] = (), side: int = 12) -> MmditConfig:
    """Return a shape of some hundred thousand parameters."""
    return MmditConfig(
        depth=depth,
        heads=3,
        head_dim=16,
        dual_blocks=dual,
        pos_embed_max_size=side,
        context_dim=40,
        pooled_dim=24,
    )


def tiny_controlnet(depth: int = 2) -> ControlNetConfig:
    """Return a shape that fits tiny_mmdit."""
    return ControlNetConfig(depth=depth, heads=3, head_dim=16, pooled_dim=24)


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0) -> None:
    """Draw every parameter and stored buffer, such that no activation grows or vanishes."""
    generator = torch.Generator().manual_seed(seed)
    for name, values in model.state_dict().items():
        values.normal_(generator=generator)
        if name.endswith("pos_embed.pos_embed"):
            continue
        if values.ndim > 1:
            values.mul_(values[0].numel() ** -0.5)
        else:
            values.mul_(0.2).add_(float("norm" in name and "linear" not in name))


def oracle_mmdit(config: MmditConfig, seed: int = 0) -> SD3Transformer2DModel:
    """Return diffusers' transformer of a shape, with random weights and positions."""
    model = SD3Transformer2DModel(
        sample_size=2 * config.pos_embed_max_size,
        patch_size=config.patch,
        in_channels=config.channels,
        num_layers=config.depth,
        attention_head_dim=config.head_dim,
        num_attention_heads=config.heads,
        joint_attention_dim=config.context_dim,
        caption_projection_dim=config.dim,
        pooled_projection_dim=config.pooled_dim,
        out_channels=config.channels,
        pos_embed_max_size=config.pos_embed_max_size,
        dual_attention_layers=config.dual_blocks,
        qk_norm="rms_norm",
    )
    randomize(model, seed)
    return model.eval().requires_grad_(False)


def oracle_controlnet(config: ControlNetConfig, seed: int = 1) -> SD3ControlNetModel:
    """Return diffusers' ControlNet of the 8B family, with random weights."""
    model = SD3ControlNetModel(
        patch_size=config.patch,
        in_channels=config.channels,
        num_layers=config.depth,
        attention_head_dim=config.head_dim,
        num_attention_heads=config.heads,
        joint_attention_dim=None,
        caption_projection_dim=config.dim,
        pooled_projection_dim=config.pooled_dim,
        out_channels=config.channels,
        pos_embed_max_size=None,
        pos_embed_type=None,
        use_pos_embed=False,
        force_zeros_for_pooled_projection=False,
    )
    randomize(model, seed)
    return model.eval().requires_grad_(False)


# Each name of diffusers as an expression, and the official one. The third of a fused projection
# follows where a tensor is one.
OUTER = {
    r"pos_embed\.proj": "x_embedder.proj",
    r"pos_embed\.pos_embed": "pos_embed",
    r"time_text_embed\.timestep_embedder\.linear_1": "t_embedder.mlp.0",
    r"time_text_embed\.timestep_embedder\.linear_2": "t_embedder.mlp.2",
    r"time_text_embed\.text_embedder\.linear_1": "y_embedder.mlp.0",
    r"time_text_embed\.text_embedder\.linear_2": "y_embedder.mlp.2",
    r"context_embedder": "context_embedder",
    r"norm_out\.linear": "final_layer.adaLN_modulation.1",
    r"proj_out": "final_layer.linear",
}
IMAGE = {
    r"norm1\.linear": "adaLN_modulation.1",
    r"(attn2?)\.to_q": r"\1.qkv.0",
    r"(attn2?)\.to_k": r"\1.qkv.1",
    r"(attn2?)\.to_v": r"\1.qkv.2",
    r"(attn2?)\.to_out\.0": r"\1.proj",
    r"(attn2?)\.norm_q": r"\1.ln_q",
    r"(attn2?)\.norm_k": r"\1.ln_k",
    r"ff\.net\.0\.proj": "mlp.fc1",
    r"ff\.net\.2": "mlp.fc2",
}
CONTEXT = {
    r"norm1_context\.linear": "adaLN_modulation.1",
    r"attn\.add_q_proj": "attn.qkv.0",
    r"attn\.add_k_proj": "attn.qkv.1",
    r"attn\.add_v_proj": "attn.qkv.2",
    r"attn\.to_add_out": "attn.proj",
    r"attn\.norm_added_q": "attn.ln_q",
    r"attn\.norm_added_k": "attn.ln_k",
    r"ff_context\.net\.0\.proj": "mlp.fc1",
    r"ff_context\.net\.2": "mlp.fc2",
}


def renamed(name: str, rules: dict[str, str]) -> str | None:
    """Return the official form of a name without .weight or .bias, None where no rule has it."""
    found = [re.sub(rule, to, name) for rule, to in rules.items() if re.fullmatch(rule, name)]
    return found[0] if found else None


def official_name(name: str) -> str:
    """Return the official name of a tensor of diffusers' transformer."""
    stem, ending = re.fullmatch(r"(.*?)(\.weight|\.bias)?", name).groups(default="")
    if not stem.startswith("transformer_blocks"):
        return f"{renamed(stem, OUTER)}{ending}"
    _, block, rest = stem.split(".", 2)
    image, context = renamed(rest, IMAGE), renamed(rest, CONTEXT)
    assert (image is None) != (context is None), name
    stream = f"x_block.{image}" if image else f"context_block.{context}"
    return f"joint_blocks.{block}.{stream}{ending}"


def fused(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with the parts of each qkv, named .qkv.0 to .qkv.2, in one."""
    whole = {name: value for name, value in tensors.items() if ".qkv." not in name}
    for name in tensors:
        if ".qkv.0" in name:
            thirds = [tensors[name.replace(".qkv.0", f".qkv.{third}")] for third in range(3)]
            whole[name.replace(".qkv.0", ".qkv")] = torch.cat(thirds)
    return whole


def official_mmdit(model: SD3Transformer2DModel) -> dict[str, Tensor]:
    """Return a transformer's weights under the names of the official files, without a prefix."""
    tensors = fused({official_name(name): value for name, value in model.state_dict().items()})
    last = f"joint_blocks.{model.config.num_layers - 1}.context_block.adaLN_modulation"
    for name, value in tensors.items():
        # diffusers has the scale in front of the shift in these two alone.
        if name.startswith((last, "final_layer.adaLN_modulation")):
            tensors[name] = torch.cat(value.chunk(2)[::-1])
    return tensors


def official_controlnet(model: SD3ControlNetModel) -> dict[str, Tensor]:
    """Return a ControlNet's weights under the names of the official files."""
    tensors = {}
    for name, value in model.state_dict().items():
        if name.startswith("transformer_blocks"):
            block, rest = re.fullmatch(r"(\w+\.\d+)\.(.*)", name).groups()
            stem, ending = rest.rsplit(".", 1)
            name = f"{block}.{renamed(stem, IMAGE)}.{ending}"
        tensors[name] = value
    return fused(tensors)


def fill(modules: tuple[nn.Module, ...], tensors: dict[str, Tensor]) -> None:
    """Load tensors into the modules that have their names; each must be used, and once only."""
    names = [name for module in modules for name in module.state_dict()]
    assert sorted(names) == sorted(tensors)
    for module in modules:
        wanted = {name: tensors[name] for name in module.state_dict()}
        module.load_state_dict(wanted, assign=True)
        module.eval().requires_grad_(False)


def twin_mmdit(
    model: SD3Transformer2DModel, config: MmditConfig
) -> tuple[Conditioning, PositionTable, Denoiser]:
    """Return our parts with the weights of diffusers' transformer."""
    with torch.device("meta"):
        parts = Conditioning(config), PositionTable(config), Denoiser(config)
    fill(parts, official_mmdit(model))
    return parts


def twin_controlnet(
    model: SD3ControlNetModel,
    led: SD3Transformer2DModel,
    config: ControlNetConfig,
    mmdit: MmditConfig,
) -> tuple[ControlNetConditioning, ControlNet]:
    """Return our parts with the weights of diffusers' ControlNet for a transformer."""
    with torch.device("meta"):
        parts = ControlNetConditioning(config), ControlNet(config, mmdit)
    embedder = {
        f"x_embedder.proj.{name}": value for name, value in led.pos_embed.proj.state_dict().items()
    }
    fill(parts, official_controlnet(model) | embedder)
    return parts


def fold(latent: Tensor) -> Tensor:
    """Return the patches (B, P, 4 C) of latents (B, C, h, w), each as (channel, row, column)."""
    batch, channels, height, width = latent.shape
    blocks = latent.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, 4 * channels)


def unfold(patches: Tensor, height: int, width: int) -> Tensor:
    """Return the latents (B, C, height, width) of patches, undoing fold."""
    blocks = patches.reshape(len(patches), height // 2, width // 2, -1, 2, 2)
    return blocks.permute(0, 3, 1, 4, 2, 5).reshape(len(patches), -1, height, width)


def places(table: PositionTable, height: int, width: int) -> Tensor:
    """Return the positions (P, D) of a latent, from the middle of the stored ones."""
    rows, columns = (centred(table.side, side // 2) for side in (height, width))
    return table(torch.tensor([*rows]), torch.tensor([*columns]))[0].flatten(0, 1)


def centred(side: int, patches: int) -> Iterator[int]:
    start = (side - patches) // 2
    return iter(range(start, start + patches))


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference as a share of the largest wanted value."""
    assert found.shape == wanted.shape
    return float((found - wanted).abs().max() / wanted.abs().max())

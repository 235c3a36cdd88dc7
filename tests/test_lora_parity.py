"""LoRAs of peft: our merged weights give what peft computes beside the untouched ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_files import CONFIG, State, make_parts, state_of, to_diffusers, write
from torch import Tensor, nn

from vkrt.models.sd35.clip import ClipText
from vkrt.models.sd35.config import ClipConfig, T5Config
from vkrt.models.sd35.t5 import T5Encoder
from vkrt.weights.lora import Adapter, apply, read_lora, remove


def transformer(official: State) -> Any:
    """Return diffusers' transformer with these weights."""
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel(
        sample_size=8,
        patch_size=CONFIG.patch,
        in_channels=CONFIG.channels,
        num_layers=CONFIG.depth,
        attention_head_dim=CONFIG.head_dim,
        num_attention_heads=CONFIG.heads,
        joint_attention_dim=CONFIG.context_dim,
        caption_projection_dim=CONFIG.dim,
        pooled_projection_dim=CONFIG.pooled_dim,
        out_channels=CONFIG.channels,
        pos_embed_max_size=CONFIG.pos_embed_max_size,
        dual_attention_layers=CONFIG.dual_blocks,
        qk_norm="rms_norm",
    )
    model.load_state_dict(to_diffusers(official))
    return model.eval().requires_grad_(False)


@torch.no_grad()
def velocity(model: Any) -> Tensor:
    """Return what a transformer makes of a fixed input."""
    draw = torch.Generator().manual_seed(3)
    return model(
        hidden_states=torch.randn(2, CONFIG.channels, 8, 12, generator=draw),
        encoder_hidden_states=torch.randn(2, 5, CONFIG.context_dim, generator=draw),
        pooled_projections=torch.randn(2, CONFIG.pooled_dim, generator=draw),
        timestep=torch.tensor([900.0, 17.0]),
        return_dict=False,
    )[0]


def matrices(model: nn.Module) -> Iterator[str]:
    """Give the name of every layer that has a matrix."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            yield name


def config(kind: str, model: nn.Module) -> Any:
    import peft

    every = list(matrices(model))
    linear = [name for name in every if name != "pos_embed.proj"]
    if kind == "loha":
        return peft.LoHaConfig(r=3, alpha=4, target_modules=linear, init_weights=False)
    if kind == "lokr":
        return peft.LoKrConfig(r=2, alpha=4, target_modules=linear, init_weights=False)
    if kind == "lokr, factored":
        settings = {"decompose_both": True, "decompose_factor": 4}
        return peft.LoKrConfig(r=1, alpha=2, target_modules=linear, init_weights=False, **settings)
    settings = {
        "lora": {},
        "rslora": {"use_rslora": True},
        "patterns": {"rank_pattern": {"attn.to_q": 5}, "alpha_pattern": {"attn.to_q": 2}},
        "dora": {"use_dora": True},
    }[kind]
    return peft.LoraConfig(
        r=3, lora_alpha=4, target_modules=every, init_lora_weights=False, **settings
    )


def save(model: Any, folder: Path, kind: str) -> Path:
    """Save the adapter of a model as people do, and return where it is."""
    from diffusers import StableDiffusion3Pipeline
    from peft import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(model)
    settings = model.peft_config["default"]
    if kind.startswith("lo") and kind != "lora":
        folder.mkdir()
        settings.save_pretrained(folder)
        named = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
        write(folder / "adapter_model.safetensors", named)
    else:
        StableDiffusion3Pipeline.save_lora_weights(
            folder,
            transformer_lora_layers=tensors,
            transformer_lora_adapter_metadata=settings.to_dict(),
        )
    return folder


KINDS = ["lora", "rslora", "patterns", "dora", "loha", "lokr", "lokr, factored"]


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_give_what_peft_gives(tmp_path: Path, kind: str) -> None:
    parts = make_parts()
    theirs = transformer(state_of(parts))
    plain = velocity(theirs)
    torch.manual_seed(1)
    theirs.add_adapter(config(kind, theirs))
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "magnitude" in name:
                weight.mul_(torch.rand_like(weight) + 0.5)
    expected = velocity(theirs)
    lora = read_lora(save(theirs, tmp_path / "lora", kind))
    if "lo" in kind and kind != "lora":
        assert (lora.layers[0].matrix.rank is None) == (kind == "lokr")
    for name, part in parts.items():
        apply(part, name, [Adapter(lora)])
    changed = velocity(transformer(state_of(parts)))
    assert (expected - plain).abs().max() > 0.05 * plain.abs().max()
    torch.testing.assert_close(changed, expected, rtol=1e-4, atol=1e-4)
    for name, part in parts.items():
        remove(part, name)
    assert torch.equal(velocity(transformer(state_of(parts))), plain)


def test_two_loras_with_scales(tmp_path: Path) -> None:
    parts = make_parts()
    theirs = transformer(state_of(parts))
    adapters = []
    for i, scale in enumerate((0.5, -0.75)):
        torch.manual_seed(i)
        alone = transformer(state_of(parts))
        alone.add_adapter(config("lora", alone))
        path = save(alone, tmp_path / str(i), "lora")
        theirs.load_lora_adapter(
            path, adapter_name=str(i), weight_name="pytorch_lora_weights.safetensors"
        )
        adapters.append(Adapter(read_lora(path), scale))
    theirs.set_adapters(["0", "1"], [0.5, -0.75])
    for name, part in parts.items():
        apply(part, name, adapters)
    changed = velocity(transformer(state_of(parts)))
    torch.testing.assert_close(changed, velocity(theirs), rtol=1e-4, atol=1e-4)


def clip_models() -> tuple[nn.Module, Any]:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    ours = ClipText(ClipConfig(16, 2, 2, 32, 12, "gelu", pad=0, vocabulary=50))
    settings = CLIPTextConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        projection_dim=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        hidden_act="gelu",
    )
    return ours, CLIPTextModelWithProjection(settings)


def t5_models() -> tuple[nn.Module, Any]:
    from transformers import T5Config as Settings
    from transformers import T5EncoderModel

    ours = T5Encoder(T5Config(dim=16, layers=2, heads=2, head_dim=8, mlp_dim=32, vocabulary=50))
    settings = Settings(
        vocab_size=50,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return ours, T5EncoderModel(settings)


ENCODERS = [
    ("clip_l", "text_encoder", ["q_proj", "v_proj", "fc1", "text_projection"]),
    ("clip_g", "text_encoder_2", ["k_proj", "out_proj", "fc2"]),
    ("t5", "text_encoder_3", ["q", "o", "wi_0", "wo"]),
]


@pytest.mark.parametrize(("part", "prefix", "layers"), ENCODERS)
def test_text_encoders(tmp_path: Path, part: str, prefix: str, layers: list[str]) -> None:
    from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model

    torch.manual_seed(0)
    ours, theirs = t5_models() if part == "t5" else clip_models()
    theirs.eval().load_state_dict(ours.state_dict(), strict=False)
    tokens = torch.randint(0, 50, (2, 9))
    settings = LoraConfig(r=2, lora_alpha=2, target_modules=layers, init_lora_weights=False)
    with torch.no_grad():
        plain = theirs(tokens)[0]
        model = inject_adapter_in_model(settings, theirs)
        expected = model(tokens)[0]
        tensors = {f"{prefix}.{k}": v for k, v in get_peft_model_state_dict(model).items()}
        path = write(tmp_path / "lora.safetensors", tensors)
        apply(ours.requires_grad_(False), part, [Adapter(read_lora(path))])
        fresh = (t5_models() if part == "t5" else clip_models())[1].eval()
        fresh.load_state_dict(ours.state_dict(), strict=False)
        changed = fresh(tokens)[0]
    assert (expected - plain).abs().max() > 0.02 * plain.abs().max()
    torch.testing.assert_close(changed, expected, rtol=1e-4, atol=1e-4)

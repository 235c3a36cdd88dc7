"""Write the parts of Stable Diffusion 3.5 as a folder that diffusers and transformers load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from vkrt.errors import CheckpointError, OutputError
from vkrt.models.sd35.config import (
    ClipConfig,
    ControlNetConfig,
    MmditConfig,
    Sd35Config,
    T5Config,
    VaeConfig,
)
from vkrt.weights.safety_limits import shown
from vkrt.weights.sd35_fit import BORROWED, PARTS_OF
from vkrt.weights.sd35_names import to_diffusers
from vkrt.weights.sd35_sources import FOLDERS, TOKENIZERS

__all__ = ["save_diffusers"]

Settings = dict[str, Any]

SHIFT = 3.0
TRAINED_STEPS = 1000
# What diffusers takes the size of a picture from when none is given, in latent pixels.
SAMPLE_SIZE = 128
# The library and class that load each folder.
CLASSES = {
    "transformer": ("diffusers", "SD3Transformer2DModel"),
    "clip_l": ("transformers", "CLIPTextModelWithProjection"),
    "clip_g": ("transformers", "CLIPTextModelWithProjection"),
    "t5": ("transformers", "T5EncoderModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "controlnet": ("diffusers", "SD3ControlNetModel"),
}
TOKENIZER_CLASSES = {"clip_l": "CLIPTokenizer", "clip_g": "CLIPTokenizer", "t5": "T5TokenizerFast"}
WEIGHT_FILES = {
    "diffusers": "diffusion_pytorch_model.safetensors",
    "transformers": "model.safetensors",
}


def save_diffusers(
    parts: Mapping[str, nn.Module],
    folder: str | Path,
    config: Sd35Config,
    controlnet: ControlNetConfig | None = None,
    tokenizers: Mapping[str, Path] | None = None,
) -> None:
    """Write a folder from which StableDiffusion3Pipeline.from_pretrained loads.

    Args:
        parts: modules by part name, in the dtypes to be written. A component whose parts are left
            out is left out of the folder; the parts of one go together.
        folder: where; files of these names in it are replaced.
        config: of the model.
        controlnet: of its ControlNet, if parts has one: it gets a folder of its own in this one.
        tokenizers: folders to copy, by text encoder ("clip_l", "clip_g", "t5"). What is left out
            of the folder has to be given to from_pretrained, as None or as it is.

    Raises:
        CheckpointError: a component has only some of its parts.
        OutputError: the folder can't be written.
    """
    kinds = [kind for kind, members in PARTS_OF.items() if is_whole(members, parts)]
    place = Path(folder)
    tokenizers = tokenizers or {}
    try:
        for kind in kinds:
            settings = settings_of(kind, config, controlnet)
            write_component(place / FOLDERS[kind], kind, settings, tensors_of(kind, parts))
        write_json(place / "scheduler" / "scheduler_config.json", scheduler_settings())
        for kind, source in tokenizers.items():
            shutil.copytree(source, place / TOKENIZERS[kind], dirs_exist_ok=True)
        write_json(place / "model_index.json", pipeline_settings(kinds, list(tokenizers)))
    except OSError as error:
        reason = error.strerror or "unknown reason"
        raise OutputError(f"{shown(place, 1000)} can't be written: {reason}") from None


def is_whole(members: tuple[str, ...], parts: Mapping[str, nn.Module]) -> bool:
    """Return whether a component is to be written.

    Raises:
        CheckpointError: only some of its parts are given.
    """
    absent = [part for part in members if part not in parts]
    if absent and len(absent) < len(members):
        raise CheckpointError(
            f"{', '.join(absent)} must be saved together with the other parts of its component: "
            f"give all of {', '.join(members)}"
        )
    return not absent


def tensors_of(kind: str, parts: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return the tensors of a component under diffusers' names."""
    own: dict[str, Tensor] = {}
    for part in PARTS_OF[kind]:
        borrowed = BORROWED.get(part, ("", ""))[0]
        for name, tensor in parts[part].state_dict().items():
            if not (borrowed and name.startswith(borrowed)):
                own[name] = tensor
    if kind == "transformer":
        count = len(parts["denoiser"].get_submodule("joint_blocks")._modules)
    elif kind == "vae":
        count = len(parts["vae_decoder"].get_submodule("decoder.up")._modules)
    else:
        count = 0
    return to_diffusers(kind, own, count)


def write_component(folder: Path, kind: str, settings: Settings, named: dict[str, Tensor]) -> None:
    """Write the weights and the config of one component."""
    library, _ = CLASSES[kind]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", settings)
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}
    file = folder / WEIGHT_FILES[library]
    # A file of that name may be mapped, by these very modules: it must not change under them.
    started = file.with_name(f"{file.name}.part")
    save_file(ready, started, metadata={"format": "pt"})
    started.replace(file)


def write_json(path: Path, content: Settings) -> None:
    """Write an object as indented JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def pipeline_settings(kinds: list[str], tokenizers: list[str]) -> Settings:
    """Return model_index.json: what the pipeline is made of."""
    settings: Settings = {"_class_name": "StableDiffusion3Pipeline"}
    for kind, folder in FOLDERS.items():
        if kind != "controlnet":
            settings[folder] = list(CLASSES[kind]) if kind in kinds else [None, None]
    for kind, folder in TOKENIZERS.items():
        known = kind in tokenizers
        settings[folder] = ["transformers", TOKENIZER_CLASSES[kind]] if known else [None, None]
    settings["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    return settings


def scheduler_settings() -> Settings:
    """Return the config of the scheduler."""
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": TRAINED_STEPS,
        "shift": SHIFT,
    }


def settings_of(kind: str, config: Sd35Config, controlnet: ControlNetConfig | None) -> Settings:
    """Return the config.json of a component."""
    if kind == "transformer":
        return transformer_settings(config.mmdit)
    if kind == "vae":
        return vae_settings(config.vae)
    if kind == "t5":
        return t5_settings(config.t5)
    if kind == "controlnet":
        return controlnet_settings(controlnet or ControlNetConfig())
    return clip_settings(config.clip_l if kind == "clip_l" else config.clip_g)


def transformer_settings(config: MmditConfig) -> Settings:
    """Return the config of SD3Transformer2DModel."""
    return {
        "_class_name": CLASSES["transformer"][1],
        "sample_size": min(SAMPLE_SIZE, config.pos_embed_max_size * config.patch),
        "patch_size": config.patch,
        "in_channels": config.channels,
        "out_channels": config.channels,
        "num_layers": config.depth,
        "attention_head_dim": config.head_dim,
        "num_attention_heads": config.heads,
        "joint_attention_dim": config.context_dim,
        "caption_projection_dim": config.dim,
        "pooled_projection_dim": config.pooled_dim,
        "pos_embed_max_size": config.pos_embed_max_size,
        "dual_attention_layers": list(config.dual_blocks),
        "qk_norm": "rms_norm",
    }


def controlnet_settings(config: ControlNetConfig) -> Settings:
    """Return the config of SD3ControlNetModel, as of one that reads no prompt."""
    return {
        "_class_name": CLASSES["controlnet"][1],
        "sample_size": SAMPLE_SIZE,
        "patch_size": config.patch,
        "in_channels": config.channels,
        "out_channels": config.channels,
        "num_layers": config.depth,
        "attention_head_dim": config.head_dim,
        "num_attention_heads": config.heads,
        "joint_attention_dim": None,
        "pooled_projection_dim": config.pooled_dim,
        "pos_embed_max_size": None,
        "pos_embed_type": None,
        "use_pos_embed": False,
        "force_zeros_for_pooled_projection": False,
        "extra_conditioning_channels": 0,
    }


def clip_settings(config: ClipConfig) -> Settings:
    """Return the config of CLIPTextModelWithProjection."""
    return {
        "architectures": [CLASSES["clip_l"][1]],
        "model_type": "clip_text_model",
        "hidden_size": config.dim,
        "intermediate_size": config.mlp_dim,
        "projection_dim": config.projection_dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "max_position_embeddings": config.length,
        "hidden_act": config.activation,
        "vocab_size": config.vocabulary,
        "bos_token_id": 0,
        # 2 makes transformers look for the largest token, as CLIP does.
        "eos_token_id": 2,
        "pad_token_id": config.pad,
    }


def t5_settings(config: T5Config) -> Settings:
    """Return the config of T5EncoderModel."""
    return {
        "architectures": [CLASSES["t5"][1]],
        "model_type": "t5",
        "d_model": config.dim,
        "d_kv": config.head_dim,
        "d_ff": config.mlp_dim,
        "num_layers": config.layers,
        "num_heads": config.heads,
        "vocab_size": config.vocabulary,
        "relative_attention_num_buckets": config.buckets,
        "relative_attention_max_distance": config.max_distance,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
        "is_encoder_decoder": False,
        "use_cache": False,
        "tie_word_embeddings": False,
    }


def vae_settings(config: VaeConfig) -> Settings:
    """Return the config of AutoencoderKL."""
    levels = len(config.multipliers)
    return {
        "_class_name": CLASSES["vae"][1],
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": [config.channels * factor for factor in config.multipliers],
        "layers_per_block": config.blocks,
        "latent_channels": config.latent_channels,
        "norm_num_groups": config.groups,
        "act_fn": "silu",
        "sample_size": SAMPLE_SIZE * config.stride,
        "scaling_factor": config.scaling,
        "shift_factor": config.shift,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "force_upcast": True,
    }

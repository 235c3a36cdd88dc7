"""A tiny StableDiffusion3Pipeline of diffusers, and the engine on the folder that it saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import transformers
from sd35_oracle import oracle_controlnet, oracle_mmdit, randomize
from vocabularies import T5_PIECES, clip_vocabulary, write_clip, write_t5_json

from vkrt.backends.eager import EagerBackend
from vkrt.engines.budget import Budget
from vkrt.engines.sd35 import Generator
from vkrt.media.text import Tokenizers
from vkrt.models.sd35.config import ControlNetConfig, MmditConfig
from vkrt.options import Options
from vkrt.weights.lora_stack import LoraStack
from vkrt.weights.sd35 import open_sd35
from vkrt.weights.sd35_stages import LazyStages

__all__ = ["open_folder", "tiny_controlled", "tiny_pipeline"]

MMDIT = MmditConfig(
    depth=4,
    heads=3,
    head_dim=16,
    dual_blocks=(0, 1),
    pos_embed_max_size=12,
    context_dim=96,
    pooled_dim=64,
)
CONTROL = ControlNetConfig(depth=2, heads=3, head_dim=16, pooled_dim=64)
LEVELS = 4


def clip(dim: int, heads: int, activation: str, seed: int) -> Any:
    """Return a CLIP text encoder with random weights."""
    config = transformers.CLIPTextConfig(
        hidden_size=dim,
        intermediate_size=2 * dim,
        projection_dim=32,
        num_hidden_layers=3,
        num_attention_heads=heads,
        max_position_embeddings=77,
        hidden_act=activation,
        vocab_size=len(clip_vocabulary()),
        eos_token_id=2,
    )
    return drawn(transformers.CLIPTextModelWithProjection(config), seed)


def t5() -> Any:
    """Return a T5 encoder with random weights."""
    config = transformers.T5Config(
        d_model=MMDIT.context_dim,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=3,
        vocab_size=len(T5_PIECES) + 100,
        feed_forward_proj="gated-gelu",
    )
    return drawn(transformers.T5EncoderModel(config), 4)


def vae() -> Any:
    """Return an autoencoder with random weights."""
    model = diffusers.AutoencoderKL(
        block_out_channels=[8, 16, 16, 16],
        down_block_types=["DownEncoderBlock2D"] * LEVELS,
        up_block_types=["UpDecoderBlock2D"] * LEVELS,
        layers_per_block=1,
        latent_channels=MMDIT.channels,
        norm_num_groups=4,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return drawn(model, 5)


def drawn(model: Any, seed: int) -> Any:
    """Return a model with weights of its own, as it runs."""
    randomize(model, seed)
    return model.eval().requires_grad_(False)


def tiny_pipeline(folder: Path) -> Any:
    """Save a pipeline of random weights into a folder and return it."""
    words = write_clip(folder / "words")
    pipeline = diffusers.StableDiffusion3Pipeline(
        transformer=oracle_mmdit(MMDIT, seed=1),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(),
        text_encoder=clip(32, 2, "quick_gelu", 2),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(words, model_max_length=77),
        text_encoder_2=clip(48, 3, "gelu", 3),
        tokenizer_2=transformers.CLIPTokenizer.from_pretrained(
            words, model_max_length=77, pad_token="!"
        ),
        text_encoder_3=t5(),
        tokenizer_3=write_t5_json(folder / "pieces"),
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder / "pipeline")
    return pipeline


def tiny_controlled(pipeline: Any, folder: Path) -> Any:
    """Save a ControlNet of random weights into a folder, and return a pipeline led by it."""
    controlnet = oracle_controlnet(CONTROL, seed=6)
    controlnet.save_pretrained(folder / "controlnet")
    parts = pipeline.components
    led = diffusers.StableDiffusion3ControlNetPipeline(**parts, controlnet=controlnet)
    led.set_progress_bar_config(disable=True)
    return led


def open_folder(folder: Path, controlnet: bool = False) -> Generator:
    """Return the engine on what these saved."""
    control = folder / "controlnet" if controlnet else None
    weights = open_sd35(folder / "pipeline", controlnet=control)
    stages = LazyStages(weights, {})
    backend = EagerBackend(Options(device="cpu", precision="fp32"))
    return Generator(
        weights.name,
        weights.config,
        stages,
        lambda name: backend,
        Tokenizers(weights.tokenizer_folders()),
        budget=Budget({name: stages.bytes(name) for name in stages}, control=weights.controlnet),
        adapters=LoraStack(stages),
    )

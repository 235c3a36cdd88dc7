"""The CLIP text encoder gives what transformers' does, in PyTorch and exported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from vkrt.export.check import check_stage, refuse_failures
from vkrt.export.to_onnx import stage_to_onnx
from vkrt.models.sd35.clip import ClipText
from vkrt.models.sd35.config import CLIP_G, CLIP_L, ClipConfig
from vkrt.models.sd35.text_stages import clip_stage

RELATIVE = 1e-5
LENGTH = 77
SMALL = ClipConfig(
    dim=32,
    layers=3,
    heads=2,
    mlp_dim=64,
    projection_dim=24,
    activation="quick_gelu",
    pad=99,
    vocabulary=100,
)
SMALL_G = replace(SMALL, activation="gelu", heads=4, pad=0, projection_dim=32)


def oracle_of(config: ClipConfig) -> CLIPTextModelWithProjection:
    """Return transformers' model with random weights, its biases and norms too."""
    torch.manual_seed(0)
    settings = CLIPTextConfig(
        vocab_size=config.vocabulary,
        hidden_size=config.dim,
        intermediate_size=config.mlp_dim,
        projection_dim=config.projection_dim,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=config.length,
        hidden_act=config.activation,
        # As the checkpoints of Stable Diffusion say: the end of the text is the largest id.
        eos_token_id=2,
    )
    model = CLIPTextModelWithProjection(settings).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, mean=float(weight.ndim == 1) / 2, std=0.3)
    return model


def twin_of(oracle: CLIPTextModelWithProjection, config: ClipConfig) -> ClipText:
    model = ClipText(config)
    model.load_state_dict(oracle.state_dict(), strict=True)
    return model.eval()


def prompts(config: ClipConfig, words: tuple[int, ...] = (0, 5, 75)) -> Tensor:
    """Return prompts (B, 77) of so many words each, with a start, an end and padding."""
    torch.manual_seed(1)
    tokens = torch.full((len(words), LENGTH), config.pad)
    for row, count in enumerate(words):
        tokens[row, 0] = config.vocabulary - 2
        tokens[row, 1 : count + 1] = torch.randint(config.vocabulary - 2, (count,))
        tokens[row, count + 1] = config.vocabulary - 1
    return tokens


def relative_error(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted.double()).abs().max() / wanted.double().abs().max())


@torch.inference_mode()
@pytest.mark.parametrize("config", [SMALL, SMALL_G], ids=["l", "g"])
def test_prompts_are_encoded_as_in_transformers(config: ClipConfig) -> None:
    oracle = oracle_of(config)
    tokens = prompts(config)
    wanted = oracle(tokens, output_hidden_states=True)
    hidden, pooled = twin_of(oracle, config)(tokens)
    assert relative_error(hidden, wanted.hidden_states[-2]) < RELATIVE
    assert relative_error(pooled, wanted.text_embeds) < RELATIVE
    # The figures are of different prompts, and the last layer and the norm do something.
    assert relative_error(pooled[0], pooled[1]) > 0.01
    assert relative_error(hidden, wanted.last_hidden_state) > 0.01


@torch.inference_mode()
def test_padding_counts_behind_the_end_only() -> None:
    model = twin_of(oracle_of(SMALL), SMALL)
    tokens = prompts(SMALL, (5,))
    others = tokens.clone()
    others[0, 7:] = 3
    (hidden, pooled), (hidden_too, pooled_too) = model(tokens), model(others)
    assert relative_error(pooled_too, pooled) < RELATIVE
    assert relative_error(hidden_too[:, :7], hidden[:, :7]) < RELATIVE
    assert relative_error(hidden_too[:, 7:], hidden[:, 7:]) > 0.01


@torch.inference_mode()
def test_a_prompt_in_a_batch_is_as_alone() -> None:
    model = twin_of(oracle_of(SMALL), SMALL)
    tokens = prompts(SMALL)
    hidden, pooled = model(tokens)
    for row in range(len(tokens)):
        alone, alone_pooled = model(tokens[row : row + 1])
        assert relative_error(alone, hidden[row : row + 1]) < RELATIVE
        assert relative_error(alone_pooled, pooled[row : row + 1]) < RELATIVE


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_is_no_worse_than_transformers(dtype: torch.dtype) -> None:
    oracle = oracle_of(SMALL)
    tokens = prompts(SMALL)
    exact = oracle.double()(tokens, output_hidden_states=True)
    wanted = exact.hidden_states[-2], exact.text_embeds
    model = twin_of(oracle, SMALL).to(dtype)
    reduced = oracle.to(dtype)(tokens, output_hidden_states=True)
    theirs = reduced.hidden_states[-2], reduced.text_embeds
    for got, peer, truth in zip(model(tokens), theirs, wanted, strict=True):
        assert got.dtype == dtype
        assert relative_error(got, truth) < 2 * relative_error(peer, truth)


@pytest.mark.parametrize("config", [CLIP_L, CLIP_G], ids=["l", "g"])
def test_full_size_has_the_names_and_shapes_of_transformers(config: ClipConfig) -> None:
    with torch.device("meta"):
        ours = ClipText(config).state_dict()
        theirs = CLIPTextModelWithProjection(
            CLIPTextConfig(
                hidden_size=config.dim,
                intermediate_size=config.mlp_dim,
                projection_dim=config.projection_dim,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
            )
        ).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


@pytest.mark.slow
@pytest.mark.parametrize("config", [SMALL, SMALL_G], ids=["l", "g"])
def test_the_stage_is_exported(config: ClipConfig, tmp_path: Path) -> None:
    stage = clip_stage("clip_l", twin_of(oracle_of(config), config), config)
    stage_to_onnx(stage, tmp_path / "clip.onnx")
    figures = check_stage(stage, tmp_path / "clip.onnx")
    refuse_failures(figures)
    assert [figure.output for figure in figures] == ["hidden", "pooled"]
    assert all(len(figure.sizes) == 2 for figure in figures)

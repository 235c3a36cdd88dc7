"""The T5 encoder gives what transformers' does, in PyTorch and exported, and stays finite."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor
from transformers import T5EncoderModel
from transformers.models.t5.modeling_t5 import T5Attention

from vkrt.export.check import check_stage, refuse_failures
from vkrt.export.to_onnx import stage_to_onnx
from vkrt.models.sd35.config import T5Config
from vkrt.models.sd35.t5 import RelativeBias, T5Encoder
from vkrt.models.sd35.text_stages import t5_stage

RELATIVE = 1e-5
SMALL = T5Config(dim=32, layers=3, heads=4, head_dim=8, mlp_dim=48, vocabulary=100)
LARGEST_HALF = torch.finfo(torch.float16).max


def settings_of(config: T5Config) -> transformers.T5Config:
    return transformers.T5Config(
        vocab_size=config.vocabulary,
        d_model=config.dim,
        d_kv=config.head_dim,
        d_ff=config.mlp_dim,
        num_layers=config.layers,
        num_heads=config.heads,
        relative_attention_num_buckets=config.buckets,
        relative_attention_max_distance=config.max_distance,
        feed_forward_proj="gated-gelu",
    )


def oracle_of(config: T5Config) -> T5EncoderModel:
    """Return transformers' model with random weights, its norms and position bias too."""
    torch.manual_seed(0)
    model = T5EncoderModel(settings_of(config)).eval()
    for name, weight in model.named_parameters():
        share = 0.2 if "norm" in name else 1.0 if "bias" in name else weight.shape[-1] ** -0.5
        torch.nn.init.normal_(weight, mean=float("norm" in name), std=share)
    return model


def twin_of(oracle: T5EncoderModel, config: T5Config) -> T5Encoder:
    model = T5Encoder(config)
    weights = oracle.state_dict()
    # The same tensor under another name.
    weights.pop("encoder.embed_tokens.weight", None)
    model.load_state_dict(weights, strict=True)
    return model.eval()


def prompts(rows: int, length: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randint(SMALL.vocabulary, (rows, length))


def relative_error(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted.double()).abs().max() / wanted.double().abs().max())


@torch.inference_mode()
@pytest.mark.parametrize("length", [1, 77, 256, 300])
def test_prompts_are_encoded_as_in_transformers(length: int) -> None:
    oracle = oracle_of(SMALL)
    tokens = prompts(2, length)
    wanted = oracle(tokens).last_hidden_state
    (got,) = twin_of(oracle, SMALL)(tokens)
    assert got.shape == (2, length, SMALL.dim)
    assert relative_error(got, wanted) < RELATIVE


@torch.inference_mode()
def test_the_position_bias_counts_in_every_layer() -> None:
    model = twin_of(oracle_of(SMALL), SMALL)
    tokens = prompts(1, 40)
    (before,) = model(tokens)
    model.get_parameter(
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    ).zero_()
    assert relative_error(model(tokens)[0], before) > 0.01
    # Without it and without a mask the order of the tokens is lost.
    order = torch.randperm(40)
    assert relative_error(model(tokens[:, order])[0], model(tokens)[0][:, order]) < RELATIVE


@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (32, 64), (8, 16), (64, 512), (6, 9)])
def test_buckets_are_those_of_transformers(buckets: int, distance: int) -> None:
    offsets = torch.arange(-700, 701)
    wanted = T5Attention._relative_position_bucket(offsets, True, buckets, distance)
    bias = RelativeBias(replace(SMALL, buckets=buckets, max_distance=distance))
    assert torch.equal(bias.bucket(offsets), wanted)
    assert int(wanted.max()) == buckets - 1


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_is_no_worse_than_transformers(dtype: torch.dtype) -> None:
    oracle = oracle_of(SMALL)
    tokens = prompts(2, 77)
    model = twin_of(oracle, SMALL).to(dtype)
    truth = oracle.double()(tokens).last_hidden_state
    (got,) = model(tokens)
    peer = oracle.to(dtype)(tokens).last_hidden_state
    assert got.dtype == dtype
    assert relative_error(got, truth) < 1.5 * relative_error(peer, truth)


@torch.inference_mode()
def test_what_exceeds_fp16_between_the_layers_stays_finite() -> None:
    """As in T5-XXL, whose feed-forward parts give more than 65504 for some prompts."""
    oracle = oracle_of(SMALL)
    for block in oracle.encoder.block:
        block.layer[1].DenseReluDense.wi_1.weight.mul_(200)
        block.layer[1].DenseReluDense.wo.weight.mul_(500)
    tokens = prompts(2, 77)
    model = twin_of(oracle, SMALL)
    sizes = []
    for block in model.encoder.block:
        part = block.layer[1].DenseReluDense
        part.register_forward_hook(lambda module, given, made: sizes.append(made.abs().max()))
    (truth,) = model(tokens)
    assert max(sizes) > 2 * LARGEST_HALF
    (got,) = model.half()(tokens)
    assert got.isfinite().all()
    assert relative_error(got, truth) < 0.02


def test_full_size_has_the_names_and_shapes_of_transformers() -> None:
    with torch.device("meta"):
        ours = T5Encoder(T5Config()).state_dict()
        theirs = T5EncoderModel(settings_of(T5Config())).state_dict()
    theirs.pop("encoder.embed_tokens.weight", None)
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


@pytest.mark.slow
def test_the_stage_is_exported(tmp_path: Path) -> None:
    stage = t5_stage(twin_of(oracle_of(SMALL), SMALL), SMALL)
    stage_to_onnx(stage, tmp_path / "t5.onnx")
    figures = check_stage(stage, tmp_path / "t5.onnx")
    refuse_failures(figures)
    assert [figure.output for figure in figures] == ["hidden"]
    assert len(set(figures[0].sizes)) == 3

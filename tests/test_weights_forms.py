"""Weights as training code leaves them: found, completed or named for what they are."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pico import NAME
from safetensors.torch import load_file, save_file
from torch import Tensor

import vkrt
from vkrt.errors import CheckpointError, UnknownModelError
from vkrt.weights.checkpoint import read_tensors
from vkrt.weights.sam2 import load_sam2

State = dict[str, Tensor]
DECODER = "sam_mask_decoder."


@pytest.fixture(scope="module")
def weights(pico_checkpoint: Path) -> State:
    return load_file(pico_checkpoint)


@pytest.fixture(autouse=True)
def in_catalog(pico: str) -> None:
    """Let weights be recognised as the smallest model."""


@pytest.fixture
def cache(tmp_path: Path, weights: State, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a cache folder with the smallest model's own weights."""
    from dataclasses import replace

    from vkrt import catalog

    model = replace(catalog.find(NAME), hub_id="someone/pico", checkpoint="pico.pt")
    monkeypatch.setitem(catalog._MODELS, NAME, model)
    monkeypatch.setattr("vkrt.weights.hub.import_hub", lambda: None)
    (tmp_path / "checkpoints").mkdir()
    torch.save({"model": weights}, tmp_path / "checkpoints" / "pico.pt")
    return tmp_path


def behind(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def loaded(content: Any, folder: Path, name: str | None = None, **options: Any) -> State:
    path = folder / "given.pt"
    torch.save(content, path)
    return dict(load_sam2(path, name, **options)[1].state_dict())


def refusal(content: Any, folder: Path, name: str | None = None, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        loaded(content, folder, name, **options)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 3000
    return message


def assert_same(found: State, wanted: State) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def changed(state: State, by: float = 1.0) -> State:
    return {name: tensor + by for name, tensor in state.items()}


FORMS: dict[str, Callable[[State], Any]] = {
    "bare": lambda w: w,
    "DataParallel": lambda w: {"model": behind("module.", w)},
    "DataParallel, bare": lambda w: behind("module.", w),
    "compiled": lambda w: {"model": behind("_orig_mod.", w)},
    "compiled in DataParallel": lambda w: behind("module._orig_mod.", w),
    "a compiled part": lambda w: {
        name.replace("image_encoder.", "image_encoder._orig_mod."): v for name, v in w.items()
    },
    "Lightning": lambda w: {"state_dict": behind("model.", w), "epoch": 3, "loops": {"a": {}}},
    "Lightning, compiled": lambda w: {"state_dict": behind("model._orig_mod.", w)},
    "an adapter": lambda w: {"model": behind("sam2_model.", w)},
    "any wrapper": lambda w: behind("net.backbone_of_mine.sam.", w),
    "model_state_dict": lambda w: {"model_state_dict": w, "optimizer_state_dict": {}, "epoch": 1},
    "net": lambda w: {"net": w},
    "an average alone": lambda w: {"ema_state_dict": w},
    "an average, nested": lambda w: {"ema": {"module": behind("module.", w), "updates": 10}},
    "a name of one's own": lambda w: {"my_sam": w, "epoch": 3, "loss": {"mask": torch.zeros(())}},
    "DeepSpeed": lambda w: {"module": w, "dp_world_size": 1},
    "the trainer of SAM 2": lambda w: {
        "model": w,
        "optimizer": {
            "state": {0: {"exp_avg": torch.zeros(3)}},
            "param_groups": [{"lr": 1e-4, "params": [0]}],
        },
        "epoch": 40,
        "loss": {"loss_mask": torch.tensor(0.1)},
        "steps": {"train": 100, "val": 0},
        "time_elapsed": 12.5,
    },
    "numbers beside": lambda w: {**w, "epoch": 3, "name": "x", "best": None},
    "parameters": lambda w: {name: torch.nn.Parameter(tensor) for name, tensor in w.items()},
    "in float64": lambda w: {name: tensor.double() for name, tensor in w.items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_weights(form: str, weights: State, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(loaded(FORMS[form](weights), tmp_path), weights)
        assert_same(loaded(FORMS[form](weights), tmp_path, NAME), weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype, weights: State, tmp_path: Path) -> None:
    half = {name: tensor.to(dtype) for name, tensor in weights.items()}
    assert_same(loaded({"model": half}, tmp_path), {k: v.float() for k, v in half.items()})


AVERAGED: dict[str, Callable[[State, State], Any]] = {
    "by key": lambda w, a: {"model": w, "model_ema": a},
    "by key, wrapped": lambda w, a: {"ema": {"module": behind("module.", a)}, "model": w},
    "by prefix": lambda w, a: {"state_dict": behind("model.", w) | behind("model_ema.", a)},
    "by ema_pytorch": lambda w, a: {
        **behind("online_model.", w),
        **behind("ema_model.", a),
        "initted": torch.tensor(True),
        "step": torch.tensor(10),
    },
    "by prefix of the average alone": lambda w, a: w | behind("ema.", a),
}


@pytest.mark.parametrize("form", AVERAGED)
def test_the_running_average_goes_first(form: str, weights: State, tmp_path: Path) -> None:
    average = changed(weights)
    with pytest.warns(RuntimeWarning, match="taken|left out"):
        assert_same(loaded(AVERAGED[form](weights, average), tmp_path), average)


@pytest.mark.parametrize("form", AVERAGED)
def test_an_average_of_some_does_not(form: str, weights: State, tmp_path: Path) -> None:
    some = {k: v for k, v in changed(weights).items() if not k.startswith(DECODER)}
    with pytest.warns(RuntimeWarning, match="taken|left out"):
        assert_same(loaded(AVERAGED[form](weights, some), tmp_path), weights)


def test_parts_of_other_models_are_named_and_left_out(weights: State, tmp_path: Path) -> None:
    extra = {
        **behind("model.visual_model.", weights),
        "model.layers.0.self_attn.q_proj.weight": torch.ones(2, 2),
        "model.vision_tower.x": torch.ones(2),
        "model.vision_tower.y": torch.ones(2),
        "lm_head.weight": torch.ones(2, 2),
    }
    with pytest.warns(RuntimeWarning) as caught:
        assert_same(loaded({"state_dict": extra}, tmp_path), weights)
    (warning,) = caught
    said = str(warning.message)
    assert all(part in said for part in ("layers (1)", "vision_tower (2)", "lm_head (1)"))


def test_what_is_not_known_is_refused_by_name(weights: State, tmp_path: Path) -> None:
    head = {f"{DECODER}my_head.weight": torch.zeros(4, 4)}
    assert f"1 unexpected ({DECODER}my_head.weight)" in refusal(weights | head, tmp_path)
    outside = behind("model.", weights) | {"adapter.weight": torch.zeros(4, 4)}
    assert "1 unexpected (adapter.weight)" in refusal(outside, tmp_path)
    # Inside SAM 2's own names nothing is left out.
    inner = {"image_encoder.loss.weight": torch.zeros(1)}
    assert "1 unexpected (image_encoder.loss.weight)" in refusal(weights | inner, tmp_path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda w: w | behind("module.", w), "comes twice, inside a wrapper and without"),
        (lambda w: behind("a.", w) | behind("b.", w), "holds 2 models ('a.', 'b.')"),
        (lambda w: {"a": w, "b": w}, "holds several sets of weights (a, b)"),
        (lambda w: {"optimizer": {"state": {}}, "epoch": 1}, "no tensors by name but optimizer"),
        (lambda w: {"model": {**w, "x": {"y": 1}}}, "holds a dict under x"),
        (lambda w: {"model": {**w, "x": torch.nn.Linear(1, 1)}}, "holds a torch.nn.modules.linear"),
        (lambda w: behind("model.", w) | {"no_mem_embed": w["no_mem_embed"]}, "with model. and"),
        (lambda w: torch.nn.Linear(2, 2), "holds a torch.nn.modules.linear.Linear, not tensors"),
    ],
)
def test_what_is_not_clear_is_refused(
    make: Callable[[State], Any], words: str, weights: State, tmp_path: Path
) -> None:
    assert words in refusal(make(weights), tmp_path)


# Parts of a model

PARTIAL: dict[str, Callable[[State], Any]] = {
    "under its name": lambda d: d,
    "wrapped": lambda d: {"model": behind("module.model.", d)},
    "saved by itself": lambda d: {name.removeprefix(DECODER): v for name, v in d.items()},
}


def decoder_of(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name.startswith(DECODER)}


@pytest.mark.parametrize("form", PARTIAL)
def test_a_decoder_goes_over_the_models_own_weights(form: str, weights: State, cache: Path) -> None:
    decoder = changed(decoder_of(weights))
    with pytest.warns(RuntimeWarning, match="sam_mask_decoder alone: the rest is that of .*pico"):
        found = loaded(PARTIAL[form](decoder), cache, NAME, cache=cache)
    assert_same(found, weights | decoder)


def test_two_modules_go_over_it_too(weights: State, cache: Path) -> None:
    both = {k: v for k, v in weights.items() if k.startswith((DECODER, "sam_prompt_encoder."))}
    with pytest.warns(RuntimeWarning, match="sam_prompt_encoder and sam_mask_decoder alone"):
        found = loaded({"state_dict": changed(both)}, cache, NAME, cache=cache)
    assert_same(found, weights | changed(both))


def test_a_part_needs_its_model_and_all_of_itself(
    weights: State, cache: Path, tmp_path: Path
) -> None:
    decoder = decoder_of(weights)
    assert "holds sam_mask_decoder of SAM 2 alone: name the model" in refusal(decoder, tmp_path)
    message = refusal(decoder, tmp_path, NAME, cache=tmp_path / "empty")
    assert "sam_mask_decoder alone" in message and f"vkrt pull {NAME}" in message
    lost = decoder.popitem()[0]
    message = refusal(decoder, tmp_path, NAME, cache=cache)
    assert f"of that lacks {lost}: save the whole module" in message
    odd = changed(decoder_of(weights)) | {f"{DECODER}x": torch.ones(1)}
    with pytest.warns(RuntimeWarning):
        assert f"1 unexpected ({DECODER}x)" in refusal(odd, tmp_path, NAME, cache=cache)


def test_load_takes_a_decoder_beside_a_name(
    weights: State, cache: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VKRT_CACHE", str(cache))
    save_file(changed(decoder_of(weights), 0.01), cache / "decoder.safetensors")
    with pytest.warns(RuntimeWarning, match="alone"):
        tuned = vkrt.load(NAME, cache / "decoder.safetensors", backend="eager")
    with vkrt.load(NAME, backend="eager") as own, tuned:
        scores = [m.encode(photo).predict(points=[[60, 40]]).scores for m in (own, tuned)]
    assert not np.allclose(*scores, atol=1e-3)


# Other families, by the names of their tensors


def state_of(*names: str) -> State:
    return {name: torch.ones(4, 4) for name in names}


OTHERS: dict[str, State] = {
    "Stable Diffusion 1": state_of("model.diffusion_model.input_blocks.0.0.weight"),
    "Stable Diffusion 1 or": state_of("down_blocks.0.resnets.0.conv1.weight",
                                      "time_embedding.linear_1.weight"),
    "Stable Diffusion 2": state_of("model.diffusion_model.input_blocks.0.0.weight",
                                   "cond_stage_model.model.transformer.resblocks.0.ln_1.weight"),
    "Stable Diffusion XL": state_of("model.diffusion_model.input_blocks.0.0.weight",
                                    "conditioner.embedders.1.model.ln_final.weight"),
    "Stable Diffusion 3, not 3.5": state_of("joint_blocks.0.x_block.attn.qkv.weight"),
    "Stable Diffusion 3.5": state_of("joint_blocks.0.x_block.attn.ln_q.weight"),
    "FLUX": state_of("model.diffusion_model.double_blocks.0.img_attn.qkv.weight",
                     "model.diffusion_model.single_blocks.0.linear1.weight"),
    "FLUX,": state_of("transformer_blocks.0.attn.add_q_proj.weight",
                      "single_transformer_blocks.0.attn.to_q.weight"),
    "Qwen-Image": state_of("transformer_blocks.0.attn.add_q_proj.weight",
                           "transformer_blocks.0.img_mod.1.weight"),
    "SAM 1": state_of("image_encoder.blocks.0.attn.qkv.weight", "mask_decoder.iou_token.weight"),
    "SAM 1,": state_of("vision_encoder.layers.0.attn.qkv.weight", "mask_decoder.iou_token.weight"),
    "SAM 3": state_of("detector.backbone.vision_backbone.trunk.blocks.0.attn.qkv.weight"),
    "MobileSAM": state_of("image_encoder.layers.0.blocks.0.conv1.c.weight",
                          "mask_decoder.iou_token.weight"),
    "a LoRA": state_of("transformer.transformer_blocks.0.attn.to_q.lora_A.weight",
                       "transformer.transformer_blocks.0.attn.to_q.lora_B.weight"),
    "a LoRA, which": state_of("lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight"),
    "a ControlNet alone": state_of("controlnet_blocks.0.weight", "transformer_blocks.0.x.weight"),
    "an autoencoder alone": state_of("encoder.conv_in.weight", "decoder.conv_in.weight"),
    "a T5 encoder alone": state_of("encoder.block.0.layer.0.SelfAttention.q.weight"),
    "a CLIP text encoder": state_of("text_model.encoder.layers.0.mlp.fc1.weight"),
}  # fmt: skip


def said_by_load(*arguments: Any, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        vkrt.load(*arguments, backend="eager", **options)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 1500
    return message


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_are_named(family: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(OTHERS[family], path)
    assert f"this checkpoint is {family}" in said_by_load(NAME, path)
    if not family.startswith("Stable Diffusion 3"):
        assert f"is {family}" in said_by_load(path)
        assert f"{path} is {family}" in said_by_load("sd3.5-medium", path)
    torch.save(OTHERS[family], tmp_path / "x.pt")
    assert f"this checkpoint is {family}" in said_by_load(tmp_path / "x.pt")


def test_each_loader_names_what_is_the_others(weights: State, tmp_path: Path) -> None:
    save_file(weights, tmp_path / "sam.safetensors")
    torch.save(weights, tmp_path / "sam.pt")
    for name in ("sam.safetensors", "sam.pt"):
        assert "is SAM 2: load it without" in said_by_load("sd3.5-medium", tmp_path / name)


@pytest.mark.parametrize(
    ("head", "what"), [(b"GGUF\3\0\0\0", "a GGUF file"), (b"\x89HDF\r\n\x1a\n", "an HDF5 file")]
)
def test_other_formats_are_named(tmp_path: Path, head: bytes, what: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(head + bytes(100))
    for arguments in ((path,), (NAME, path), ("sd3.5-medium", path)):
        assert what in said_by_load(*arguments)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("black-forest-labs/FLUX.1-dev", "FLUX"),
        ("stabilityai/stable-diffusion-3-medium-diffusers", "Stable Diffusion 3,"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "Stable Diffusion XL"),
        ("facebook/sam-vit-huge", "SAM 1"),
        ("facebook/sam3", "SAM 3"),
    ],
)
def test_hub_ids_of_other_families_are_named(name: str, family: str) -> None:
    with pytest.raises(UnknownModelError, match=f"is {family}.*which vkrt does not run"):
        vkrt.load(name)


def test_a_pipeline_of_another_family_is_named(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    assert "is a folder of StableDiffusionXLPipeline" in said_by_load(tmp_path)


def test_wrappers_are_taken_off_lora_names_and_safetensors_too(tmp_path: Path) -> None:
    save_file({"module.a._orig_mod.b": torch.ones(2)}, tmp_path / "x.safetensors")
    assert read_tensors(tmp_path / "x.safetensors").keys() == {"a.b"}

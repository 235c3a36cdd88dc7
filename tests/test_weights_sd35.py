"""Weights of Stable Diffusion 3.5: every format loads completely, and nothing else loads at all."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sd35_files import (
    CONTROL,
    SINGLE_FILE,
    TINY,
    component_shapes,
    controlnet_shapes,
    random_state,
    single_file,
    transformer_shapes,
    write_header,
    write_tiny,
)
from torch import Tensor

from vkrt.errors import BackendError, CheckpointError, DownloadError, UnknownModelError, VkrtError
from vkrt.models.sd35.known import FILES, HUB_IDS, KNOWN
from vkrt.weights.diffusers_folder import save_diffusers
from vkrt.weights.sd35 import DTYPES, Sd35Weights, open_sd35
from vkrt.weights.sd35_fit import PARTS_OF
from vkrt.weights.sd35_names import to_diffusers
from vkrt.weights.sd35_stages import LazyStages

State = dict[str, Tensor]
States = dict[str, State]
LEVELS = len(TINY.vae.multipliers)
MAIN = ("transformer", "clip_l", "clip_g", "t5", "vae")
EMBEDDING = "text_model.embeddings.token_embedding.weight"


@pytest.fixture(scope="module")
def states() -> States:
    return {kind: random_state(shapes) for kind, shapes in component_shapes(TINY).items()}


@pytest.fixture(scope="module")
def tiny_file(states: States, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sd35") / "tiny.safetensors"
    save_file(single_file(states), path)
    return path


def with_projection(kind: str, state: State) -> State:
    """Return a state with the projection that CLIP-L has and its files leave out."""
    return state | {"text_projection.weight": torch.eye(64)} if kind == "clip_l" else state


def assert_holds(weights: Sd35Weights, states: States, dtype: str = "fp32") -> None:
    """Check that every part holds exactly these official tensors."""
    for kind, state in states.items():
        held: State = {}
        for part in PARTS_OF[kind]:
            module = weights.load(part, dtype)
            own = module.state_dict()
            held |= {k: v for k, v in own.items() if kind != "controlnet" or "x_embedder" not in k}
            size = sum(tensor.numel() for tensor in own.values()) * DTYPES[dtype].itemsize
            assert weights.bytes(part, dtype) == size
            assert not module.training
            for tensor in (*module.parameters(), *module.buffers()):
                assert tensor.device.type == "cpu" and not tensor.requires_grad
                assert tensor.is_contiguous()
        wanted = with_projection(kind, state)
        assert held.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert torch.equal(held[name], tensor.to(DTYPES[dtype])), name


def refusal(path: Path, **options: Any) -> str:
    """Return the one line with which opening fails."""
    with pytest.raises(CheckpointError) as caught:
        open_sd35(path, **options)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 3000
    return message


def saved(path: Path, state: State) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


# Formats


def test_a_file_of_everything(tiny_file: Path, states: States) -> None:
    weights = open_sd35(tiny_file)
    assert weights.name == "custom" and weights.config == TINY
    assert weights.parts == {part for kind in MAIN for part in PARTS_OF[kind]}
    assert weights.controlnet is None and weights.control is None
    assert_holds(weights, states)


@pytest.mark.parametrize("there", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("wanted", ["fp32", "bf16", "fp16"])
def test_any_dtype_becomes_the_wanted_one(tmp_path: Path, there: str, wanted: str) -> None:
    states = write_tiny(tmp_path / "tiny.safetensors", DTYPES[there])
    assert_holds(open_sd35(tmp_path / "tiny.safetensors"), states, wanted)


def test_plain_fp8_is_read(states: States, tmp_path: Path) -> None:
    small = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in states["t5"].items()}
    file = saved(tmp_path / "tiny.safetensors", states["transformer"])
    weights = open_sd35(file, encoders={"t5": saved(tmp_path / "t5xxl_fp8.safetensors", small)})
    assert_holds(weights, {"t5": {k: v.to(torch.bfloat16) for k, v in small.items()}}, "bf16")


def scaled(state: State, scale_name: str, by_row: bool = False) -> tuple[State, State]:
    """Return matrices as scaled fp8 beside the rest, and the weights that this stands for."""
    given: State = {}
    meant: State = {}
    for name, tensor in state.items():
        given[name] = meant[name] = tensor
        if name.endswith(".weight") and tensor.ndim == 2:
            scale = tensor.abs().amax(dim=1 if by_row else (0, 1)) / 448
            by = scale[:, None] if by_row else scale
            given[name] = (tensor / by).to(torch.float8_e4m3fn)
            given[f"{name.removesuffix('weight')}{scale_name}"] = by if by_row else scale
            meant[name] = given[name].float() * by
    assert any(not torch.equal(meant[name], tensor) for name, tensor in state.items())
    return given, meant


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    ("scale_name", "by_row"),
    [("scale_weight", False), ("weight_scale", False), ("weight_scale", True)],
)
def test_scaled_fp8_is_multiplied_out(
    states: States, tmp_path: Path, scale_name: str, by_row: bool, dtype: str
) -> None:
    """Formula: fp8 value * scale in float32, then the wanted dtype."""
    wanted: States = {}
    everything: State = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for kind in ("transformer", "t5"):
        given, wanted[kind] = scaled(states[kind], scale_name, by_row)
        first = next(name for name in given if name.endswith(scale_name))
        given["scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
        given[first.replace(scale_name, "scale_input")] = torch.tensor(0.5)
        given[first.replace(scale_name, "comfy_quant")] = text_tensor('{"format": "float8_e4m3fn"}')
        everything |= {f"{SINGLE_FILE[kind]}{name}": tensor for name, tensor in given.items()}
    weights = open_sd35(saved(tmp_path / "x", everything))
    assert_holds(weights, wanted, dtype)
    other = {k: v * 2 if k.endswith(scale_name) else v for k, v in everything.items()}
    assert open_sd35(saved(tmp_path / "y", other)).fingerprint() != weights.fingerprint()


def test_scaled_fp8_under_the_names_of_diffusers(states: States, tmp_path: Path) -> None:
    """Each third of a fused weight has its own scale, and halves change places."""
    depth = TINY.mmdit.depth
    given, meant = scaled(
        to_diffusers("transformer", states["transformer"], depth), "weight_scale", by_row=True
    )
    found = open_sd35(saved(tmp_path / "x", given))
    official = {
        name: tensor
        for part in PARTS_OF["transformer"]
        for name, tensor in found.load(part, "fp32").state_dict().items()
    }
    back = to_diffusers("transformer", official, depth)
    assert back.keys() == meant.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in meant.items())


def text_tensor(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"x.comfy_quant": text_tensor('{"format": "nvfp4"}')}, "of which only scaled fp8 is read"),
        ({"x.weight_scale_2": torch.ones(1)}, "of which only scaled fp8 is read"),
        ({"x.weight_scale": torch.ones(1)}, "x.weight_scale of 1 values, which scales no weight"),
        ({"context_embedder.scale_weight": torch.ones(3)}, "of 3 values, which scales no weight"),
    ],
)
def test_other_scaled_weights_are_refused(
    states: States, tmp_path: Path, extra: State, words: str
) -> None:
    assert words in refusal(saved(tmp_path / "x", states["transformer"] | extra))


def test_parts_of_the_models_that_components_come_from_are_left_out(
    states: States, tmp_path: Path
) -> None:
    t5 = states["t5"] | {
        "decoder.block.0.layer.0.SelfAttention.q.weight": torch.ones(2, 2),
        "decoder.final_layer_norm.weight": torch.ones(2),
        "lm_head.weight": torch.ones(2, 2),
    }
    clip = states["clip_l"] | {
        "vision_model.embeddings.class_embedding": torch.ones(2),
        "visual_projection.weight": torch.ones(2, 2),
        "logit_scale": torch.ones(()),
    }
    everything = single_file({kind: states[kind] for kind in ("transformer", "clip_g", "vae")})
    everything |= {
        "conditioner.embedders.0.x": torch.ones(2),
        "first_stage_model.loss.logvar": torch.ones(1),
        "model_ema.decay": torch.ones(1),
    }
    encoders = {"t5": saved(tmp_path / "t5", t5), "clip_l": saved(tmp_path / "clip", clip)}
    with pytest.warns(RuntimeWarning) as caught:
        weights = open_sd35(saved(tmp_path / "x", everything), encoders=encoders)
    assert_holds(weights, states)
    (said,) = (str(warning.message) for warning in caught)
    for part in (
        *("conditioner (1)", "running average (1)", "vae's training loss (1)"),
        *("t5's decoder (3)", "clip_l's vision tower (2)"),
    ):
        assert part in said
    odd = everything | {"my_head.weight": torch.ones(2)}
    with pytest.warns(RuntimeWarning):
        assert "1 unexpected (my_head.weight)" in refusal(saved(tmp_path / "y", odd))


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "net.mmdit.", "transformer."]
)
def test_any_prefix_of_the_transformer(states: States, tmp_path: Path, prefix: str) -> None:
    own = {f"{prefix}{name}": tensor for name, tensor in states["transformer"].items()}
    file = saved(tmp_path / "x", own)
    assert_holds(open_sd35(file), {"transformer": states["transformer"]})
    if prefix == "net.mmdit.":
        odd = saved(tmp_path / "y", own | {"net.head.weight": torch.ones(2)})
        assert "1 unexpected (net.head.weight)" in refusal(odd)


def test_a_component_is_left_out_by_wish(tiny_file: Path, states: States) -> None:
    without = open_sd35(tiny_file, encoders={"t5": None})
    assert without.parts == open_sd35(tiny_file).parts - {"t5"}
    assert_holds(without, {kind: states[kind] for kind in ("transformer", "clip_l", "vae")})
    named = open_sd35(tiny_file, encoders={"text_encoder_3": None})
    assert named.parts == without.parts
    for place in ("", False, 3, b"x", ["x"]):
        assert "give a path, or None to leave it out" in refusal(tiny_file, encoders={"t5": place})


@pytest.mark.parametrize("bare", [True, False], ids=["bare", "prefixed"])
def test_the_transformer_alone_with_files_of_the_others(
    states: States, tmp_path: Path, bare: bool
) -> None:
    start = "" if bare else SINGLE_FILE["transformer"]
    own = {f"{start}{name}": tensor for name, tensor in states["transformer"].items()}
    start = "" if bare else "transformer."
    encoders = {
        kind: saved(
            tmp_path / kind,
            {f"{start if kind != 'vae' else ''}{k}": v for k, v in states[kind].items()},
        )
        for kind in MAIN[1:]
    }
    file = saved(tmp_path / "tiny.safetensors", own)
    assert_holds(open_sd35(file, encoders=encoders), states)
    alone = open_sd35(file)
    assert alone.parts == set(PARTS_OF["transformer"])
    assert alone.config.t5 == KNOWN["sd3.5-large"].t5


def test_encoders_beside_the_file_are_found(states: States, tmp_path: Path) -> None:
    (tmp_path / "text_encoders").mkdir()
    for kind, name in (("clip_l", "clip_l"), ("clip_g", "clip_g"), ("t5", "t5xxl_fp8_e4m3fn")):
        saved(tmp_path / "text_encoders" / f"{name}.safetensors", states[kind])
    file = saved(tmp_path / "x", single_file({k: states[k] for k in ("transformer", "vae")}))
    assert_holds(open_sd35(file), states)


def test_given_encoders_go_first(tiny_file: Path, states: States, tmp_path: Path) -> None:
    other = random_state(component_shapes(TINY)["t5"], seed=1)
    weights = open_sd35(tiny_file, encoders={"t5": saved(tmp_path / "t5", other)})
    assert_holds(weights, {**states, "t5": other})
    # A part of another file of everything.
    assert_holds(open_sd35(tiny_file, encoders={"vae": str(tiny_file)}), states)


def test_what_nothing_uses_is_passed_over(states: States, tmp_path: Path) -> None:
    everything = single_file(states)
    everything |= {
        "text_encoders.clip_l.logit_scale": torch.tensor(4.6),
        "text_encoders.clip_l.transformer.text_projection.weight": torch.rand(64, 64),
        "text_encoders.clip_l.transformer.text_model.embeddings.position_ids": torch.arange(77),
        "text_encoders.t5xxl.transformer.encoder.embed_tokens.weight": torch.rand(120, 192),
    }
    assert_holds(open_sd35(saved(tmp_path / "x", everything)), states)
    renamed = dict(states["t5"])
    renamed["encoder.embed_tokens.weight"] = renamed.pop("shared.weight")
    file = saved(tmp_path / "y", states["transformer"])
    assert_holds(
        open_sd35(file, encoders={"t5": saved(tmp_path / "z", renamed)}), {"t5": states["t5"]}
    )


# Folders of diffusers


def tiny_pipeline(states: States) -> dict[str, Any]:
    """Return the models of diffusers and transformers with these official weights, by folder."""
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    mmdit, vae, t5 = TINY.mmdit, TINY.vae, TINY.t5
    models = {
        "transformer": diffusers.SD3Transformer2DModel(
            sample_size=16,
            num_layers=mmdit.depth,
            attention_head_dim=mmdit.head_dim,
            num_attention_heads=mmdit.heads,
            joint_attention_dim=mmdit.context_dim,
            caption_projection_dim=mmdit.dim,
            pooled_projection_dim=mmdit.pooled_dim,
            pos_embed_max_size=mmdit.pos_embed_max_size,
            dual_attention_layers=mmdit.dual_blocks,
            qk_norm="rms_norm",
        ),
        "vae": diffusers.AutoencoderKL(
            block_out_channels=[vae.channels * factor for factor in vae.multipliers],
            down_block_types=["DownEncoderBlock2D"] * LEVELS,
            up_block_types=["UpDecoderBlock2D"] * LEVELS,
            layers_per_block=vae.blocks,
            latent_channels=vae.latent_channels,
            scaling_factor=vae.scaling,
            shift_factor=vae.shift,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        "text_encoder_3": transformers.T5EncoderModel(
            transformers.T5Config(
                d_model=t5.dim,
                d_kv=t5.head_dim,
                d_ff=t5.mlp_dim,
                num_layers=t5.layers,
                num_heads=t5.heads,
                vocab_size=t5.vocabulary,
                feed_forward_proj="gated-gelu",
            )
        ),
    }
    for folder, clip in (("text_encoder", TINY.clip_l), ("text_encoder_2", TINY.clip_g)):
        models[folder] = transformers.CLIPTextModelWithProjection(
            transformers.CLIPTextConfig(
                hidden_size=clip.dim,
                intermediate_size=clip.mlp_dim,
                projection_dim=clip.projection_dim,
                num_hidden_layers=clip.layers,
                num_attention_heads=clip.heads,
                max_position_embeddings=clip.length,
                hidden_act=clip.activation,
                vocab_size=clip.vocabulary,
            )
        )
    for folder, state in theirs(states).items():
        missing, unexpected = models[folder].load_state_dict(state, strict=False)
        assert not unexpected and set(missing) <= {"encoder.embed_tokens.weight"}
    return models


def theirs(states: States) -> States:
    """Return official tensors as diffusers' own converters name them, by folder."""
    from diffusers.loaders import single_file_utils

    levels = {"down_block_types": [""] * LEVELS, "up_block_types": [""] * LEVELS}
    return {
        "transformer": single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers(
            dict(states["transformer"])
        ),
        "vae": single_file_utils.convert_ldm_vae_checkpoint(dict(states["vae"]), levels),
        "text_encoder": with_projection("clip_l", states["clip_l"]),
        "text_encoder_2": states["clip_g"],
        "text_encoder_3": states["t5"],
    }


def test_a_folder_that_diffusers_saved(states: States, tmp_path: Path) -> None:
    for folder, model in tiny_pipeline(states).items():
        # Small enough for several shards.
        model.save_pretrained(tmp_path / folder, max_shard_size="200KB")
    assert len(list((tmp_path / "transformer").glob("*-of-*.safetensors"))) > 1
    (tmp_path / "tokenizer_2").mkdir()
    weights = open_sd35(tmp_path)
    assert weights.config == TINY
    assert_holds(weights, states)
    assert_holds(weights, {k: bf16(v) for k, v in states.items()}, "bf16")
    assert weights.tokenizer_folders() == {"clip_g": tmp_path / "tokenizer_2"}


def bf16(state: State) -> State:
    return {name: tensor.to(torch.bfloat16) for name, tensor in state.items()}


def test_a_folder_of_a_variant(states: States, tmp_path: Path) -> None:
    models = tiny_pipeline(states)
    models["transformer"].save_pretrained(
        tmp_path / "transformer", variant="fp16", max_shard_size="200KB"
    )
    models["vae"].save_pretrained(tmp_path / "vae", variant="fp16")
    assert_holds(open_sd35(tmp_path), {kind: states[kind] for kind in ("transformer", "vae")})


def all_parts(weights: Sd35Weights, dtype: str = "fp32") -> dict[str, Any]:
    return {part: weights.load(part, dtype) for part in weights.parts}


def test_diffusers_loads_the_folder_that_is_saved(
    tiny_file: Path, states: States, tmp_path: Path
) -> None:
    diffusers = pytest.importorskip("diffusers")
    save_diffusers(all_parts(open_sd35(tiny_file)), tmp_path, TINY)
    pipeline = diffusers.StableDiffusion3Pipeline.from_pretrained(
        tmp_path, tokenizer=None, tokenizer_2=None, tokenizer_3=None
    )
    assert pipeline.scheduler.config.shift == 3.0
    assert pipeline.vae.config.scaling_factor == TINY.vae.scaling
    assert pipeline.vae.config.shift_factor == TINY.vae.shift
    for folder, wanted in theirs(states).items():
        held = getattr(pipeline, folder).state_dict()
        held.pop("encoder.embed_tokens.weight", None)
        assert held.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert torch.equal(held[name], tensor), name
    again = open_sd35(tmp_path)
    assert again.config == TINY
    assert_holds(again, states)


def test_a_folder_is_saved_over_the_one_that_is_loaded(tiny_file: Path, tmp_path: Path) -> None:
    save_diffusers(all_parts(open_sd35(tiny_file)), tmp_path, TINY)
    parts = all_parts(open_sd35(tmp_path))
    before = {part: {k: v.clone() for k, v in m.state_dict().items()} for part, m in parts.items()}
    save_diffusers(parts, tmp_path, TINY)
    for part, module in parts.items():
        assert all(torch.equal(before[part][k], v) for k, v in module.state_dict().items())


def test_some_components_are_saved(tiny_file: Path, states: States, tmp_path: Path) -> None:
    weights = open_sd35(tiny_file)
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "vocab.json").write_text("{}")
    parts = {part: weights.load(part, "bf16") for part in PARTS_OF["transformer"]}
    save_diffusers(parts, tmp_path / "out", TINY, tokenizers={"clip_g": tmp_path / "words"})
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["text_encoder_3"] == [None, None] and index["vae"] == [None, None]
    assert index["tokenizer_2"] == ["transformers", "CLIPTokenizer"]
    assert (tmp_path / "out" / "tokenizer_2" / "vocab.json").is_file()
    again = open_sd35(tmp_path / "out")
    assert_holds(again, {"transformer": bf16(states["transformer"])}, "bf16")
    del parts["positions"]
    with pytest.raises(CheckpointError, match="positions must be saved together"):
        save_diffusers(parts, tmp_path / "out", TINY)
    (tmp_path / "file").touch()
    with pytest.raises(VkrtError, match="can't be written"):
        save_diffusers({"clip_l": weights.load("clip_l", "fp32")}, tmp_path / "file", TINY)


# ControlNets


@pytest.fixture(scope="module")
def control() -> State:
    return random_state(controlnet_shapes(CONTROL), seed=3)


def renamed(state: State) -> State:
    """Return a ControlNet under the other names that its embedders have in some files."""
    table = {"linear_1": "0", "linear_2": "2"}
    pattern = r"^time_text_embed\.(t)(?:imestep|ext)_embedder\.(linear_.)\."
    return {
        re.sub(
            pattern,
            lambda m: f"{'y' if 'text_embedder' in m[0] else 't'}_embedder.mlp.{table[m[2]]}.",
            name,
        ): tensor
        for name, tensor in state.items()
    }


@pytest.mark.parametrize("form", ["official", "renamed", "diffusers"])
def test_a_controlnet_is_loaded(
    tiny_file: Path, states: States, control: State, tmp_path: Path, form: str
) -> None:
    path = tmp_path / "sd3.5_large_controlnet_depth.safetensors"
    if form == "diffusers":
        path = tmp_path / "canny"
        path.mkdir()
        saved(path / "diffusion_pytorch_model.safetensors", to_diffusers("controlnet", control, 0))
        (path / "config.json").write_text(json.dumps({"attention_head_dim": 16}))
    else:
        saved(path, control if form == "official" else renamed(control))
    weights = open_sd35(tiny_file, controlnet=path)
    assert weights.controlnet == CONTROL
    assert weights.control == ("canny" if form == "diffusers" else "depth")
    assert_holds(weights, {**states, "controlnet": control})
    embedder = weights.load("controlnet", "fp32").get_parameter("x_embedder.proj.weight")
    assert torch.equal(embedder, states["transformer"]["x_embedder.proj.weight"])
    save_diffusers(all_parts(weights), tmp_path / "out", TINY, weights.controlnet)
    again = open_sd35(tiny_file, controlnet=tmp_path / "out" / "controlnet")
    assert_holds(again, {"controlnet": control})


def test_diffusers_loads_the_controlnet_that_is_saved(
    tiny_file: Path, control: State, tmp_path: Path
) -> None:
    diffusers = pytest.importorskip("diffusers")
    weights = open_sd35(tiny_file, controlnet=saved(tmp_path / "x", control))
    assert weights.control is None
    save_diffusers(all_parts(weights), tmp_path / "out", TINY, weights.controlnet)
    model = diffusers.SD3ControlNetModel.from_pretrained(tmp_path / "out" / "controlnet")
    wanted = to_diffusers("controlnet", control, 0)
    held = model.state_dict()
    assert held.keys() == wanted.keys()
    assert all(torch.equal(held[name], tensor) for name, tensor in wanted.items())


def test_a_controlnet_says_what_it_is_for(tiny_file: Path, control: State, tmp_path: Path) -> None:
    said = control | {"control_type": torch.tensor([1], dtype=torch.int32)}
    said |= {"x_embedder.proj.bias": torch.ones(3)}
    path = saved(tmp_path / "depth.safetensors", said)
    assert open_sd35(tiny_file, controlnet=path).control == "canny"


def test_a_controlnet_of_another_kind_is_refused(
    tiny_file: Path, control: State, tmp_path: Path
) -> None:
    wide = random_state(controlnet_shapes(CONTROL.__class__(depth=1, heads=4, head_dim=16)))
    message = refusal(tiny_file, controlnet=saved(tmp_path / "a", wide))
    assert "64 channels wide" in message and "has 32 and 160" in message
    reads = control | {"context_embedder.weight": torch.ones(32, 192)}
    assert "reads the prompt" in refusal(tiny_file, controlnet=saved(tmp_path / "b", reads))
    cut = {k: v for k, v in control.items() if k != "controlnet_blocks.1.bias"}
    message = refusal(tiny_file, controlnet=saved(tmp_path / "c", cut))
    assert "1 missing (controlnet controlnet_blocks.1.bias)" in message


# Which model it is


@pytest.mark.parametrize("name", KNOWN)
def test_full_size_files_are_known_by_their_shapes(tmp_path: Path, name: str) -> None:
    shapes = single_shapes(name)
    path = tmp_path / FILES[name]
    write_header(path, shapes)
    weights = open_sd35(path)
    assert weights.name == name and weights.config == KNOWN[name]
    assert len(weights.parts) == 8
    sizes = {part: weights.bytes(part, "bf16") for part in weights.parts}
    table = KNOWN[name].mmdit
    assert sizes["positions"] == 2 * table.pos_embed_max_size**2 * table.dim
    identity = 768 * 768
    assert sum(sizes.values()) == path.stat().st_size - header_size(path) + 2 * identity
    assert open_sd35(path, name).name == name
    # A part of which every value is there, in a file of billions.
    decoder = weights.load("vae_decoder", "fp32")
    assert not any(tensor.is_meta for tensor in decoder.state_dict().values())


def single_shapes(name: str) -> dict[str, tuple[int, ...]]:
    return {
        f"{SINGLE_FILE[kind]}{key}": shape
        for kind, shapes in component_shapes(KNOWN[name]).items()
        for key, shape in shapes.items()
    }


def header_size(path: Path) -> int:
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def test_only_a_name_tells_turbo_from_large(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    write_header(path, component_shapes(KNOWN["sd3.5-large"])["transformer"])
    assert open_sd35(path).name == "sd3.5-large"
    turbo = open_sd35(path, "sd3.5_large_turbo")
    assert turbo.name == "sd3.5-large-turbo"
    assert (turbo.config.steps, turbo.config.guidance, turbo.config.sampler) == (4, 1.0, "euler")
    cached = tmp_path / "models--stabilityai--stable-diffusion-3.5-large-turbo" / "snapshots"
    cached.mkdir(parents=True)
    path.rename(cached / "x")
    assert open_sd35(cached / "x").name == "sd3.5-large-turbo"


def test_another_model_than_the_wanted_one_is_refused(tiny_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    write_header(path, component_shapes(KNOWN["sd3.5-medium"])["transformer"])
    message = refusal(path, name=HUB_IDS["sd3.5-large"])
    assert "holds sd3.5-medium, but sd3.5-large was asked for" in message
    assert "holds a model of 3 blocks of 32 channels, but" in refusal(
        tiny_file, name="sd3.5-medium"
    )
    assert open_sd35(tiny_file, "custom").name == "custom"
    with pytest.raises(UnknownModelError, match=r"did you mean sd3\.5-medium"):
        open_sd35(tiny_file, "sd3.5-mediun")


def test_other_models_are_refused(states: States, tmp_path: Path) -> None:
    old = {k: v for k, v in states["transformer"].items() if ".ln_" not in k}
    assert "is Stable Diffusion 3, not 3.5" in refusal(saved(tmp_path / "a", old))
    other = {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(3)}
    assert "is Stable Diffusion 1 or another model" in refusal(saved(tmp_path / "b", other))
    lone = {"model.diffusion_model.blocks.0.weight": torch.ones(3)}
    message = refusal(saved(tmp_path / "f", lone))
    assert "no transformer of Stable Diffusion 3.5 but model.diffusion_model.blocks.0" in message
    message = refusal(saved(tmp_path / "c", states["clip_l"]))
    assert "is a CLIP text encoder alone: load a transformer, and give this file as" in message
    (tmp_path / "folder").mkdir()
    assert "has no model.safetensors" in refusal(tmp_path / "folder")
    torch.save({"x": torch.ones(1)}, tmp_path / "d")
    assert "read from safetensors only" in refusal(tmp_path / "d")


def test_components_of_two_models_are_refused(tiny_file: Path, tmp_path: Path) -> None:
    other = random_state({**component_shapes(TINY)["clip_g"], "text_projection.weight": (64, 128)})
    message = refusal(tiny_file, encoders={"clip_g": saved(tmp_path / "g", other)})
    assert "clip_l and clip_g give 128 channels, but this transformer takes 160" in message
    write_header(tmp_path / "big", component_shapes(KNOWN["sd3.5-large"])["clip_g"])
    message = refusal(tiny_file, encoders={"clip_l": tmp_path / "big"})
    assert "clip_l is the other CLIP (32 layers of 1280 channels)" in message
    assert "encoders has clip" in refusal(tiny_file, encoders={"clip": tmp_path / "g"})


# Strictness


def test_all_that_does_not_fit_is_named_at_once(states: States, tmp_path: Path) -> None:
    everything = single_file(states)
    for index in range(6):
        block, half = divmod(index, 2)
        name = f"joint_blocks.{block}.{'x' if half else 'context'}_block.attn.qkv.bias"
        del everything[f"model.diffusion_model.{name}"]
    del everything["text_encoders.t5xxl.transformer.encoder.final_layer_norm.weight"]
    everything["extra.weight"] = torch.ones(1)
    everything["first_stage_model.quant_conv.weight"] = torch.ones(1)
    everything["model.diffusion_model.final_layer.linear.bias"] = torch.ones(3)
    everything["model.diffusion_model.t_embedder.mlp.0.bias"] = torch.ones(32, dtype=torch.int8)
    message = refusal(saved(tmp_path / "x", everything))
    assert "7 missing (joint_blocks.0.x_block.attn.qkv.bias, " in message
    assert "and 2 more)" in message
    assert "2 unexpected (vae quant_conv.weight, extra.weight)" in message
    assert "1 misshaped (final_layer.linear.bias is 3, not 64)" in message
    assert "1 not floating point (t_embedder.mlp.0.bias)" in message
    assert "does not fit a model of 3 blocks of 32 channels: 7 missing" in message


def test_folders_are_as_strict(states: States, tmp_path: Path) -> None:
    for kind in ("transformer", "vae"):
        (tmp_path / kind).mkdir()
    named = to_diffusers("transformer", states["transformer"], TINY.mmdit.depth)
    q = "transformer_blocks.1.attn.to_q.weight"
    named[q] = named[q][:-1]
    del named["norm_out.linear.bias"]
    file = "diffusion_pytorch_model.safetensors"
    saved(tmp_path / "transformer" / file, named)
    saved(tmp_path / "vae" / file, to_diffusers("vae", states["vae"], LEVELS))
    message = refusal(tmp_path)
    assert "1 missing (norm_out.linear.bias)" in message
    assert f"1 misshaped ({q} is 31x32, not 32x32)" in message
    (tmp_path / "vae" / "config.json").write_text("[")
    assert "can't be read as settings" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "shape", "found"),
    [
        ("pos_embed", (1, 63, 32), "misshaped (pos_embed is 1x63x32, not 1x49x32)"),
        ("pos_embed", (64, 32), "is 64x32, which no model has"),
        ("x_embedder.proj.weight", (0, 16, 2, 2), "0x16x2x2, which no model has"),
        ("x_embedder.proj.weight", (33, 16, 2, 2), "33 wide, no multiple of 16"),
        ("y_embedder.mlp.0.weight", (2**21, 0), "which no model has"),
        (f"joint_blocks.{'9' * 3000}.x_block.attn2.q", (1,), "unexpected"),
        ("joint_blocks.77.x_block.attn.proj.bias", (32,), "1 unexpected (joint_blocks.77."),
        ("line\nbreak", (1,), r"unexpected (line\nbreak)"),
    ],
)
def test_absurd_names_and_shapes_are_refused(
    states: States, tmp_path: Path, name: str, shape: tuple[int, ...], found: str
) -> None:
    state = states["transformer"] | {name: torch.ones(shape)}
    assert found in refusal(saved(tmp_path / "x", state))


def test_more_blocks_than_any_model_has_are_refused(states: States, tmp_path: Path) -> None:
    many = {f"joint_blocks.{index}.x": torch.ones(1) for index in range(600)}
    assert "has 600 blocks" in refusal(saved(tmp_path / "x", states["transformer"] | many))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"], ids=["mapped", "converted"])
def test_values_that_are_no_numbers_are_refused(
    states: States, tmp_path: Path, value: float, dtype: str
) -> None:
    state = {name: tensor.clone() for name, tensor in states["transformer"].items()}
    state["final_layer.linear.weight"][3, 4] = value
    weights = open_sd35(saved(tmp_path / "x", state))
    weights.load("conditioning", dtype)
    with pytest.raises(CheckpointError, match=r"final_layer\.linear\.weight holds NaN or infinity"):
        weights.load("denoiser", dtype)


def test_values_beyond_fp16_are_said_to_be_that(states: States, tmp_path: Path) -> None:
    large = states["transformer"] | {"final_layer.linear.bias": torch.full((64,), 1e5)}
    weights = open_sd35(saved(tmp_path / "x", large))
    with pytest.raises(CheckpointError, match=r"final_layer\.linear\.bias holds values beyond.*16"):
        weights.load("denoiser", "fp16")
    weights.load("denoiser", "bf16")


def test_a_file_that_shrinks_is_noticed(states: States, tmp_path: Path) -> None:
    path = saved(tmp_path / "x", states["transformer"])
    weights = open_sd35(path)
    os.truncate(path, path.stat().st_size // 2)
    for dtype in DTYPES:
        with pytest.raises(CheckpointError, match="get it again"):
            weights.load("denoiser", dtype)
    path.unlink()
    with pytest.raises(CheckpointError, match="get it again"):
        weights.load("denoiser", "bf16")


# Use


def test_what_is_missing_is_said_in_a_line(states: States, tmp_path: Path) -> None:
    weights = open_sd35(saved(tmp_path / "x", states["transformer"]))
    for part, said in (("t5", "encoders={'t5': PATH}"), ("controlnet", "controlnet=")):
        assert part not in weights.parts
        with pytest.raises(CheckpointError) as caught:
            weights.load(part, "fp32")
        assert str(caught.value) == weights.missing(part) and said in weights.missing(part)
    assert "encoders={'vae': PATH}" in weights.missing("vae_decoder")
    assert "has no part nonsense" in weights.missing("nonsense")
    with pytest.raises(BackendError, match="fp32, bf16, fp16"):
        weights.load("denoiser", "int8")


def test_a_name_or_a_checkpoint_is_needed(
    states: States, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What this user has downloaded before must not be found.
    monkeypatch.setattr("vkrt.weights.hub.import_hub", lambda: None)
    with pytest.raises(CheckpointError, match="give a checkpoint"):
        open_sd35(None)
    with pytest.raises(DownloadError, match=r"vkrt pull sd3\.5-medium"):
        open_sd35(None, HUB_IDS["sd3.5-medium"], cache=tmp_path)
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    write_header(folder / FILES["sd3.5-medium"], single_shapes("sd3.5-medium"))
    assert open_sd35(None, "sd3.5-medium", cache=tmp_path).name == "sd3.5-medium"
    with pytest.raises(CheckpointError, match="does not exist"):
        open_sd35(tmp_path / "nothing")


def test_fingerprints_tell_weights_apart(tiny_file: Path, states: States, tmp_path: Path) -> None:
    first = open_sd35(tiny_file).fingerprint()
    assert open_sd35(tiny_file).fingerprint() == first
    other = {**states, "vae": random_state(component_shapes(TINY)["vae"], seed=9)}
    assert open_sd35(saved(tmp_path / "x", single_file(other))).fingerprint() != first


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_weights_of_the_wanted_dtype_are_mapped(states: States, tmp_path: Path) -> None:
    path = saved(tmp_path / "mapped", states["transformer"])
    module = open_sd35(path).load("denoiser", "fp32")
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in lines if str(path) in line]
    mapped = [range(int(start, 16), int(end, 16)) for start, end in spans]
    for name, tensor in module.state_dict().items():
        assert any(tensor.data_ptr() in span for span in mapped), name
    # A LoRA changes the weights in place: the file and other processes see nothing of it.
    with torch.no_grad():
        module.get_parameter("final_layer.linear.weight").fill_(7)
    held = load_file(path)["final_layer.linear.weight"]
    assert torch.equal(held, states["transformer"]["final_layer.linear.weight"])


def test_tensors_at_odd_bytes_are_read(states: States, tmp_path: Path) -> None:
    path = saved(tmp_path / "x", single_file(states))
    length, content = header_size(path) - 8, path.read_bytes()
    start = (length + 1).to_bytes(8, "little") + content[8 : 8 + length] + b" "
    path.write_bytes(start + content[8 + length :])
    assert_holds(open_sd35(path), states)


def test_loading_leaves_the_random_state_alone(tiny_file: Path) -> None:
    before = torch.random.get_rng_state()
    all_parts(open_sd35(tiny_file))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_stages_are_loaded_when_asked_for(
    tiny_file: Path, states: States, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = open_sd35(tiny_file)
    loaded: list[str] = []
    load = weights.load
    monkeypatch.setattr(
        weights, "load", lambda part, dtype: loaded.append(part) or load(part, dtype)
    )
    stages = LazyStages(weights, {"denoiser": "bf16"})
    assert {"clip_l", "mmdit", "mmdit_controlled", "vae_decoder"} <= set(stages)
    assert "controlnet" not in stages and len(stages) == len(list(stages))
    assert stages.bytes("mmdit") == weights.bytes("denoiser", "bf16")
    assert stages.bytes("t5") == weights.bytes("t5", "fp32")
    assert not loaded
    stage = stages["mmdit"]
    assert loaded == ["denoiser"] and stage.name == "mmdit"
    assert {tensor.dtype for tensor in stage.module.state_dict().values()} == {torch.bfloat16}
    assert stages["mmdit"].module is not stage.module
    with pytest.raises(KeyError):
        stages["nonsense"]
    with pytest.raises(CheckpointError, match="no ControlNet was given"):
        stages["controlnet"]
    (embedded,) = stages["t5"].module(torch.arange(6)[None])
    assert embedded.shape == (1, 6, 192) and embedded.isfinite().all()


def test_adapters_are_put_on_what_is_loaded(
    tiny_file: Path, states: States, tmp_path: Path
) -> None:
    from vkrt.weights.lora import Adapter, read_lora

    stem = "transformer.transformer_blocks.0.attn.to_q.lora"
    up, down = torch.rand(32, 4), torch.rand(4, 32)
    path = saved(tmp_path / "lora.safetensors", {f"{stem}_A.weight": down, f"{stem}_B.weight": up})
    stages = LazyStages(open_sd35(tiny_file), {})
    stages.adapters = [Adapter(read_lora(path), 0.5)]
    name = "joint_blocks.0.x_block.attn.qkv.weight"
    before = states["transformer"][name]
    after = stages["mmdit"].module.get_parameter(name)
    assert torch.allclose(after[:32], before[:32] + 0.5 * up @ down, atol=1e-5)
    assert torch.equal(after[32:], before[32:])
    stages.adapters = []
    assert torch.equal(stages["mmdit"].module.get_parameter(name), before)


# Memory

MEASURE = """
    import sys
    from pathlib import Path
    from vkrt.weights.sd35 import open_sd35

    def status(key):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

    path, dtypes, *parts = sys.argv[1:]
    for dtype in dtypes.split(","):
        weights = open_sd35(path)
        # What a first load imports and starts is not the weights'.
        weights.load("vae_decoder", dtype)
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
        kept = [weights.load(part, dtype) for part in parts]
        peak = status("VmHWM") - before
        print(peak / sum(weights.bytes(part, dtype) for part in parts))
        del kept
"""


def peaks_over_weights(path: Path, parts: Iterable[str]) -> list[float]:
    """Return the largest memory while parts load, as a multiple of their weights.

    That is of an fp16 file, in a fresh process, as fp16 and then as bf16.
    """
    # In this order: what is mapped is given back in full.
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), str(path), "fp16,bf16", *parts]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [float(line) for line in done.stdout.split()]


needs_proc = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc"
)


@needs_proc
def test_loading_takes_the_memory_of_the_weights(tmp_path: Path) -> None:
    mmdit = TINY.mmdit.__class__(depth=6, heads=8, context_dim=192, pooled_dim=160)
    wide = {**component_shapes(TINY), "transformer": transformer_shapes(mmdit)}
    shapes = {f"{SINGLE_FILE[k]}{n}": s for k, state in wide.items() for n, s in state.items()}
    write_header(tmp_path / "x", shapes)
    peaks = peaks_over_weights(tmp_path / "x", PARTS_OF["transformer"])
    assert len(peaks) == 2 and all(0.9 < peak < 1.1 for peak in peaks), peaks


@needs_proc
@pytest.mark.slow
def test_full_size_medium_takes_the_memory_of_its_weights(tmp_path: Path) -> None:
    shapes = {k: v for k, v in single_shapes("sd3.5-medium").items() if "t5xxl" not in k}
    write_header(tmp_path / "x", shapes)
    parts: list[str] = [part for kind in MAIN if kind != "t5" for part in PARTS_OF[kind]]
    peaks = peaks_over_weights(tmp_path / "x", parts)
    assert len(peaks) == 2 and all(0.9 < peak < 1.1 for peak in peaks), peaks


def test_modules_take_no_memory_before_their_weights() -> None:
    from vkrt.weights.sd35_modules import build_part

    for part in ("conditioning", "denoiser", "t5", "vae_decoder"):
        module = build_part(part, KNOWN["sd3.5-large"])
        assert all(t.is_meta for t in module.state_dict().values() if t.numel() > 10_000)

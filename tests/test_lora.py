"""LoRAs on a module: every form changes the same bits, and taking them off leaves no trace."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from lora_files import (
    FORMS,
    State,
    kohya_file,
    make_parts,
    peft_file,
    random_layers,
    renamed,
    state_of,
    to_diffusers,
    write,
)
from torch import nn

from vkrt.errors import CheckpointError
from vkrt.models.sd35.clip import ClipText
from vkrt.models.sd35.config import ClipConfig
from vkrt.weights import lora as lora_module
from vkrt.weights.checkpoint import read_tensors
from vkrt.weights.lora import Adapter, LoraSet, apply, check, merge, read_lora, remove
from vkrt.weights.lora import shapes_of as parameter_shapes

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("lora") / "one.safetensors", peft_file(random_layers()))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a LoRA on some of the weights of the first alone."""
    layers = {k: v for k, v in random_layers(5, seed=1).items() if "attn" in k or "norm" in k}
    return write(tmp_path_factory.mktemp("lora") / "two.safetensors", peft_file(layers))


def merged(path: Path, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> State:
    parts = make_parts(dtype=dtype)
    for name, part in parts.items():
        merge(part, name, [Adapter(read_lora(path), scale)])
    return state_of(parts)


def assert_same(one: State, two: State) -> None:
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert tensor.dtype == two[name].dtype and torch.equal(tensor, two[name]), name


@pytest.mark.parametrize("scale", [1.0, -0.625])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_changes_the_same_bits(
    file: Path, tmp_path: Path, form: str, scale: float
) -> None:
    path = write(tmp_path / "lora.safetensors", FORMS[form](random_layers()))
    assert_same(merged(path, scale), merged(file, scale))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sum_is_made_in_float32_and_rounded_once(file: Path, dtype: torch.dtype) -> None:
    layers = random_layers()
    before = to_diffusers(state_of(make_parts(dtype=dtype)))
    after = to_diffusers(merged(file, 0.5, dtype))
    assert before.keys() == after.keys()
    for name, weight in before.items():
        expected = weight
        if name.removesuffix(".weight") in layers:
            up, down = layers[name.removesuffix(".weight")]
            change = (up.flatten(1) @ down.flatten(1)).view(weight.shape)
            expected = (weight.float() + 0.5 * change).to(weight.dtype)
            assert not torch.equal(after[name], weight), name
        assert torch.equal(after[name], expected), name


@pytest.mark.parametrize("alpha", [6.0, 0.75])
def test_alpha_over_rank_is_the_strength(file: Path, tmp_path: Path, alpha: float) -> None:
    tensors = kohya_file(random_layers())
    tensors = {k: v * alpha if k.endswith("alpha") else v for k, v in tensors.items()}
    path = write(tmp_path / "lora.safetensors", tensors)
    assert_same(merged(path), merged(file, alpha))


@pytest.mark.parametrize("dtype", DTYPES)
def test_taking_off_restores_every_bit(file: Path, other: Path, dtype: torch.dtype) -> None:
    one, two = Adapter(read_lora(file), 0.7), Adapter(read_lora(other), -1.3)
    parts = make_parts(dtype=dtype)
    before = state_of(parts)
    places = [p.data_ptr() for part in parts.values() for p in part.parameters()]
    for adapters in ([one], [one, two], [two], [], [two], [Adapter(one.lora, 0.0)]):
        for name, part in parts.items():
            apply(part, name, adapters)
        fresh = make_parts(dtype=dtype)
        for name, part in fresh.items():
            merge(part, name, adapters)
        assert_same(state_of(parts), state_of(fresh))
    for name, part in parts.items():
        apply(part, name, [one, two])
        remove(part, name)
        remove(part, name)
    assert_same(state_of(parts), before)
    assert places == [p.data_ptr() for part in parts.values() for p in part.parameters()]


def test_originals_go_when_they_are_not_needed(file: Path, other: Path) -> None:
    part = make_parts()["denoiser"]
    loras = LoraSet(part, "denoiser")
    loras.apply([Adapter(read_lora(file))])
    every = set(loras.originals)
    loras.apply([Adapter(read_lora(other))])
    assert 0 < len(loras.originals) < len(every)
    loras.remove()
    assert not loras.originals


def test_a_dropped_module_takes_its_originals_along(file: Path) -> None:
    part = make_parts()["denoiser"]
    count = len(lora_module.SETS)
    apply(part, "denoiser", [Adapter(read_lora(file))])
    assert len(lora_module.SETS) == count + 1
    gc.disable()
    try:
        del part
        assert len(lora_module.SETS) == count
    finally:
        gc.enable()


def test_an_interrupted_change_is_undone(
    file: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = make_parts()["denoiser"]
    before = state_of({"": part})
    apply(part, "denoiser", [Adapter(read_lora(other))])
    calls = []

    def give_up(*args: object) -> torch.Tensor:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    real = lora_module.changed
    monkeypatch.setattr(lora_module, "changed", give_up)
    with pytest.raises(KeyboardInterrupt):
        apply(part, "denoiser", [Adapter(read_lora(file))])
    assert_same(state_of({"": part}), before)


def test_a_mapped_checkpoint_is_not_written_to(file: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "weights.safetensors", make_parts()["denoiser"].state_dict())
    content = path.read_bytes()
    part = make_parts(seed=1)["denoiser"]
    part.load_state_dict(read_tensors(path), assign=True)
    part.requires_grad_(False)
    apply(part, "denoiser", [Adapter(read_lora(file))])
    changed = part.state_dict()["x_embedder.proj.weight"]
    assert not torch.equal(changed, read_tensors(path)["x_embedder.proj.weight"])
    assert path.read_bytes() == content


def test_other_parts_are_left_alone(file: Path) -> None:
    lora = read_lora(file)
    assert lora.parts == {"denoiser", "conditioning"}
    part = nn.Linear(4, 4).requires_grad_(False)
    weight = part.weight.clone()
    for name in ("t5", "positions", "vae_decoder"):
        apply(part, name, [Adapter(lora)])
    assert torch.equal(part.weight, weight)


CLIP = ClipConfig(8, 2, 2, 16, 6, "gelu", pad=0, vocabulary=20)


@pytest.mark.parametrize(
    ("part", "prefix"),
    [("clip_l", "lora_te1_{1}"), ("clip_g", "lora_te2_{1}"), ("clip_l", "text_encoder.{0}"),
     ("clip_g", "text_encoder_2.{0}"), ("clip_g", "clip_g.{0}"), ("clip_l", "lora_te1.{0}")],
)  # fmt: skip
def test_text_encoders_too(tmp_path: Path, part: str, prefix: str) -> None:
    module = ClipText(CLIP).requires_grad_(False)
    name = "text_model.encoder.layers.1.self_attn.q_proj"
    up, down = torch.ones(8, 2), torch.full((2, 8), 0.5)
    names = (f"{prefix}.lora_up.weight", f"{prefix}.lora_down.weight")
    path = write(tmp_path / "lora.safetensors", renamed({name: (up, down)}, *names))
    before = {k: v.clone() for k, v in module.state_dict().items()}
    merge(module, part, [Adapter(read_lora(path), 0.5)])
    before[f"{name}.weight"] += 0.5
    assert_same(module.state_dict(), before)


def foreign_files() -> dict[str, tuple[State, str]]:
    """Return LoRAs for other models, each with what the message says of it."""
    good = peft_file(random_layers())
    deep, wide = "transformer_blocks.7.attn.to_q", "transformer_blocks.0.attn.to_q"
    conv = "lora_unet_down_blocks_0_resnets_0_conv1"
    return {
        "deeper": (
            {**good, **peft_file({deep: (torch.ones(16, 2), torch.ones(2, 16))})},
            f"transformer.{deep} (16x16), and the denoiser of this one has no weight of that name",
        ),
        "wider": (
            {**good, **peft_file({wide: (torch.ones(32, 2), torch.ones(2, 32))})},
            f"transformer.{wide} (32x32), and the denoiser of this one has 16x16 there",
        ),
        "another family": (
            {f"{conv}.lora_up.weight": torch.ones(320, 4, 1, 1),
             f"{conv}.lora_down.weight": torch.ones(4, 320, 3, 3)},
            f"{conv} (320x2880), and the denoiser of this one has no weight of that name",
        ),
        "transposed": (
            {**good, **peft_file({"proj_out": (torch.ones(16, 2), torch.ones(2, 4))})},
            "transformer.proj_out (16x4), and the denoiser of this one has 16x16 there",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["deeper", "wider", "another family", "transposed"])
def test_a_lora_for_another_model_changes_nothing(file: Path, tmp_path: Path, kind: str) -> None:
    tensors, said = foreign_files()[kind]
    path = write(tmp_path / "foreign.safetensors", tensors)
    part = make_parts()["denoiser"]
    apply(part, "denoiser", [Adapter(read_lora(file), 0.5)])
    before = state_of({"": part})
    for act in (apply, merge):
        with pytest.raises(CheckpointError) as caught:
            act(part, "denoiser", [Adapter(read_lora(file)), Adapter(read_lora(path))])
        message = str(caught.value)
        assert message.isprintable() and said in message and str(path) in message
        assert_same(state_of({"": part}), before)


def test_check_looks_at_the_whole_model(file: Path, tmp_path: Path) -> None:
    shapes = {name: parameter_shapes(part) for name, part in make_parts().items()}
    check([Adapter(read_lora(file))], shapes)
    check([Adapter(read_lora(file))], {"denoiser": shapes["denoiser"]})
    layers = {"time_text_embed.text_embedder.linear_1": (torch.ones(4, 1), torch.ones(1, 4))}
    path = write(tmp_path / "foreign.safetensors", peft_file(layers))
    with pytest.raises(CheckpointError, match="conditioning of this one has 16x10 there"):
        check([Adapter(read_lora(file)), Adapter(read_lora(path))], shapes)


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number_is_refused(file: Path, scale: float) -> None:
    with pytest.raises(CheckpointError, match="give a number"):
        merge(make_parts()["denoiser"], "denoiser", [Adapter(read_lora(file), scale)])


def test_an_ambiguous_name_is_refused_with_its_file(tmp_path: Path) -> None:
    module = nn.ModuleDict({"a_b": nn.Linear(2, 2), "a": nn.ModuleDict({"b": nn.Linear(2, 2)})})
    tensors = renamed(
        {"a_b": (torch.ones(2, 1), torch.ones(1, 2))},
        "lora_te3_{1}.lora_up.weight",
        "lora_te3_{1}.lora_down.weight",
    )
    path = write(tmp_path / "lora.safetensors", tensors)
    with pytest.raises(CheckpointError, match="may be a_b, a") as caught:
        apply(module.requires_grad_(False), "t5", [Adapter(read_lora(path))])
    assert str(path) in str(caught.value)

"""LoRA files: what they say is read as it was meant, and what can't be used is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_files import State, write
from safetensors.torch import save_file
from torch import Tensor

from vkrt.errors import CheckpointError
from vkrt.weights.lora_file import read_lora
from vkrt.weights.lora_layer import Layer
from vkrt.weights.lora_names import Address

UP, DOWN = "transformer.a.b.lora_B.weight", "transformer.a.b.lora_A.weight"


def plain() -> State:
    return {UP: torch.ones(6, 4), DOWN: torch.ones(4, 5)}


def only_layer(path: Path) -> Layer:
    (layer,) = read_lora(path).layers
    return layer


def metadata(**settings: Any) -> dict[str, str]:
    named = {f"transformer.{key}": value for key, value in settings.items()}
    return {"lora_adapter_metadata": json.dumps(named)}


def test_without_an_alpha_the_matrices_are_as_strong_as_they_are(tmp_path: Path) -> None:
    layer = only_layer(write(tmp_path / "x.safetensors", plain(), {"format": "pt"}))
    assert layer.strength == 1.0 and layer.matrix.rank == 4 and layer.matrix.shape == (6, 5)
    assert torch.equal(layer.change(torch.zeros(6, 5)), torch.full((6, 5), 4.0))


@pytest.mark.parametrize(
    ("settings", "strength"),
    [
        ({"r": 4, "lora_alpha": 6}, 1.5),
        ({"r": 4, "lora_alpha": 6, "use_rslora": True}, 3.0),
        ({"r": 4, "lora_alpha": 6, "alpha_pattern": {"b": 2}}, 0.5),
        ({"r": 4, "lora_alpha": 6, "alpha_pattern": {"^a.b": 2.0}}, 0.5),
        ({"r": 4, "lora_alpha": 6, "alpha_pattern": {"c.a.b": 2, "^b": 2}}, 1.5),
        ({"r": 4}, 1.0),
        ({}, 1.0),
    ],
)
def test_the_notes_of_diffusers_and_peft(
    tmp_path: Path, settings: dict[str, Any], strength: float
) -> None:
    path = write(tmp_path / "x.safetensors", plain(), metadata(**settings))
    assert only_layer(path).strength == strength
    folder = tmp_path / "peft"
    folder.mkdir()
    tensors = {k.replace("transformer.", "base_model.model."): v for k, v in plain().items()}
    write(folder / "adapter_model.safetensors", tensors)
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    assert only_layer(folder).strength == strength
    assert only_layer(folder / "adapter_model.safetensors").strength == strength


def test_an_alpha_of_its_own_comes_first(tmp_path: Path) -> None:
    tensors = {**plain(), "transformer.a.b.alpha": torch.tensor(2.0, dtype=torch.bfloat16)}
    path = write(tmp_path / "x.safetensors", tensors, metadata(r=4, lora_alpha=6))
    assert only_layer(path).strength == 0.5


def test_notes_of_another_model_do_not_count(tmp_path: Path) -> None:
    tensors = {
        **plain(),
        "text_encoder.a.lora_B.weight": torch.ones(6, 2),
        "text_encoder.a.lora_A.weight": torch.ones(2, 5),
    }
    notes = {"transformer.r": 4, "transformer.lora_alpha": 8}
    notes |= {"text_encoder.r": 2, "text_encoder.lora_alpha": 1}
    header = {"lora_adapter_metadata": json.dumps(notes)}
    lora = read_lora(write(tmp_path / "x.safetensors", tensors, header))
    strengths = {layer.address.part: layer.strength for layer in lora.layers}
    assert strengths == {"denoiser": 2.0, "clip_l": 0.5}


def test_whole_factors_have_no_rank(tmp_path: Path) -> None:
    """LyCORIS stores an alpha beside them, which stands for nothing."""
    tensors = {
        "lycoris_a.lokr_w1": torch.tensor([[1.0, 2.0]]),
        "lycoris_a.lokr_w2": torch.tensor([[3.0], [4.0]]),
        "lycoris_a.alpha": torch.tensor(64.0),
    }
    layer = only_layer(write(tmp_path / "x.safetensors", tensors))
    assert layer.change(torch.zeros(2, 2)).tolist() == [[3.0, 6.0], [4.0, 8.0]]
    # In peft's files they are as strong as its settings say.
    del tensors["lycoris_a.alpha"]
    write(tmp_path / "adapter_model.safetensors", tensors)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8, "alpha": 4}))
    assert only_layer(tmp_path / "adapter_model.safetensors").strength == 0.5


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("bundle_emb.me.string_to_param.*", "embeddings of words (1)"),
        ("emb_params", "embeddings of words (1)"),
        ("clip_l", "embeddings of words (1)"),
        ("lycoris_a.w_norm", "changes of norms (1)"),
        ("lycoris_a.b_norm", "changes of norms (1)"),
        ("diffusion_model.a.diff_b", "changes of biases (1)"),
    ],
)
def test_what_is_no_matrix_is_left_out_with_a_word(tmp_path: Path, key: str, what: str) -> None:
    path = write(tmp_path / "x.safetensors", {**plain(), key: torch.ones(3)})
    with pytest.warns(RuntimeWarning) as caught:
        assert only_layer(path).matrix.shape == (6, 5)
    assert what in str(caught[0].message) and str(path) in str(caught[0].message)


def test_a_whole_difference_is_added(tmp_path: Path) -> None:
    change = torch.arange(30.0).view(6, 5)
    layer = only_layer(write(tmp_path / "x.safetensors", {"diffusion_model.a.diff": change}))
    assert torch.equal(layer.change(torch.zeros(6, 5)), change)


@pytest.mark.parametrize(
    "start",
    ["transformer.base_model.model.", "base_model.model.transformer.", "unet.", "", "_orig_mod."],
)
def test_wrapped_names_mean_the_transformer(tmp_path: Path, start: str) -> None:
    path = "transformer_blocks.1.attn.to_q"
    tensors = {f"{start}{path}.lora_{k}.weight": torch.ones(4, 4) for k in "AB"}
    layer = only_layer(write(tmp_path / "x.safetensors", tensors))
    assert layer.address == Address("denoiser", path, flat=False)


def test_notes_are_found_through_a_wrapper(tmp_path: Path) -> None:
    tensors = {
        k.replace("transformer.", "transformer.base_model.model."): v for k, v in plain().items()
    }
    notes = metadata(r=4, lora_alpha=6, alpha_pattern={"a.b": 2})
    assert only_layer(write(tmp_path / "x.safetensors", tensors, notes)).strength == 0.5


def test_a_model_given_as_a_lora_is_named(tmp_path: Path) -> None:
    model = {"joint_blocks.0.x_block.attn.ln_q.weight": torch.ones(4)}
    said = refusal(write(tmp_path / "x.safetensors", model))
    assert "it is no LoRA but Stable Diffusion 3.5" in said


def test_a_torch_file_is_read_too(tmp_path: Path) -> None:
    torch.save(plain(), tmp_path / "x.pt")
    assert only_layer(tmp_path / "x.pt").strength == 1.0


@pytest.mark.parametrize(
    ("shape", "expected"), [((6,), (6, 1)), ((6, 1), (6, 1)), ((1, 5), (1, 5))]
)
def test_magnitudes_of_rows_and_of_columns(
    tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, int]
) -> None:
    """DoRA: the changed weight has the given norms, whatever its direction."""
    magnitude = torch.arange(1.0, torch.Size(shape).numel() + 1).view(shape)
    tensors = {**plain(), "transformer.a.b.dora_scale": magnitude}
    layer = only_layer(write(tmp_path / "x.safetensors", tensors))
    assert layer.magnitude is not None and layer.magnitude.shape == expected
    weight = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    changed = weight + layer.change(weight)
    along = 1 if expected[1] == 1 else 0
    torch.testing.assert_close(changed.norm(dim=along), magnitude.flatten())
    direction = torch.nn.functional.cosine_similarity(changed, weight + 4, dim=along)
    torch.testing.assert_close(direction, torch.ones_like(direction))


def test_a_row_of_zeros_has_no_direction(tmp_path: Path) -> None:
    tensors = {**plain(), "transformer.a.b.dora_scale": torch.ones(6, 1)}
    layer = only_layer(write(tmp_path / "x.safetensors", tensors))
    assert layer.change(torch.full((6, 5), -4.0)).isfinite().all()


def broken(**changes: Tensor | None) -> State:
    """Return a LoRA with tensors added, replaced or (None) left out."""
    names = {"up": UP, "down": DOWN}
    tensors: dict[str, Tensor | None] = {**plain()}
    tensors |= {names.get(key, f"transformer.a.b.{key}"): value for key, value in changes.items()}
    return {key: value for key, value in tensors.items() if value is not None}


REFUSED: dict[str, tuple[State, str]] = {
    "no lora": ({"model.weight": torch.ones(2, 2)}, "holds no LoRA but model.weight"),
    "a bias": (broken(**{"lora_B.bias": torch.ones(6)}), "a.b.lora_B.bias is no known part"),
    "lycoris on kernels": (broken(lokr_t2=torch.ones(2, 2)), "a.b.lokr_t2 is no known part"),
    "a mix": (broken(hada_w1_a=torch.ones(2, 2)), "a.b has down, hada_w1_a, up alone"),
    "no down": (broken(down=None), "a.b has up alone, no whole LoRA"),
    "alpha alone": ({"lora_unet_a.alpha": torch.tensor(1.0)}, "lora_unet_a has nothing alone"),
    "half a lokr": ({"a.lokr_w1": torch.ones(2, 2)}, "a has lokr_w1 alone"),
    "ranks differ": (broken(up=torch.ones(6, 3)), "the matrices of transformer.a.b don't fit"),
    "a vector": (broken(down=torch.ones(4)), "has down of shape [4], no matrix"),
    "nothing in it": (broken(down=torch.ones(0, 5)), "has down of shape [0, 5], no matrix"),
    "nan": (broken(up=torch.full((6, 4), torch.nan)), "a.b.up holds NaN or infinity"),
    "infinite alpha": (broken(alpha=torch.tensor(torch.inf)), "a.b.alpha holds NaN or infinity"),
    "two alphas": (broken(alpha=torch.ones(2)), "a.b.alpha is no single number"),
    "magnitude": (broken(dora_scale=torch.ones(4)), "have shape [4] for a 6x5 weight"),
    "two adapters": (
        broken(**{"lora_A.second.weight": torch.ones(4, 5)}),
        "comes twice: save the LoRA with one adapter",
    ),
    "hadamard": (
        {
            **{f"a.hada_w{i}_a": torch.ones(2 * i, 2) for i in (1, 2)},
            **{f"a.hada_w{i}_b": torch.ones(2, 3) for i in (1, 2)},
        },
        "the matrices of a don't fit",
    ),
}


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_lora(path)
    message = str(caught.value)
    assert message.isprintable() and str(path) in message and ": " in message
    return message


@pytest.mark.parametrize("kind", REFUSED)
def test_what_can_not_be_used_is_named(tmp_path: Path, kind: str) -> None:
    tensors, said = REFUSED[kind]
    assert said in refusal(write(tmp_path / "x.safetensors", tensors))


@pytest.mark.parametrize(
    ("notes", "said"),
    [
        ("{", "can't be read"),
        ("[1]", "can't be read"),
        ('{"transformer.lora_alpha": "six"}', "lora_alpha is six, no number"),
        ('{"transformer.lora_alpha": true}', "no number"),
        ('{"transformer.lora_alpha": NaN}', "no number"),
        ('{"transformer.lora_alpha": 1e400}', "no number"),
        ('{"transformer.lora_alpha": 1, "transformer.r": 1e-9, "x": 1' + "9" * 5000 + "}", "read"),
        ('{"transformer.alpha_pattern": {"(a+)+$": 2}}', "more than plain names"),
        ('{"transformer.alpha_pattern": ["a"]}', "more than plain names"),
    ],
)
def test_notes_that_make_no_sense_are_refused(tmp_path: Path, notes: str, said: str) -> None:
    path = tmp_path / "x.safetensors"
    save_file(plain(), path, {"lora_adapter_metadata": notes})
    assert said in refusal(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.safetensors")

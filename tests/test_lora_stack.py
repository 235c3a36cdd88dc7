"""The LoRAs of a model that runs: on all modules or on none, and off again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lora_files import make_parts, peft_file, random_layers, write
from torch import nn

from vkrt.errors import CheckpointError
from vkrt.models.sd35.mmdit import ControlledDenoiser
from vkrt.weights import lora_stack
from vkrt.weights.lora_stack import LoraStack

Parts = dict[str, nn.Module]


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in module.named_parameters()}


@pytest.fixture
def parts() -> Parts:
    return make_parts()


@pytest.fixture
def stages(parts: Parts) -> Any:
    """Return what has the weights, and is told of what later loads get."""
    weights = SimpleNamespace(parts=frozenset(parts), shapes=lambda part: shapes(parts[part]))
    return SimpleNamespace(weights=weights, adapters=[])


def one(folder: Path, seed: int) -> Path:
    return write(folder / f"{seed}.safetensors", peft_file(random_layers(seed=seed)))


def snapshot(parts: Parts) -> list[torch.Tensor]:
    return [w.clone() for module in parts.values() for w in module.state_dict().values()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, one, other))


def test_on_and_off(tmp_path: Path, parts: Parts, stages: Any) -> None:
    stack, before = LoraStack(stages), snapshot(parts)
    loaded = {"mmdit_controlled": ControlledDenoiser(parts["denoiser"])}
    stack.add(one(tmp_path, 1), 0.5, loaded)
    first = snapshot({"denoiser": parts["denoiser"]})
    assert not same(first, before)
    stack.add(one(tmp_path, 2), -1.0, {"mmdit": parts["denoiser"]})
    assert not same(first, snapshot({"denoiser": parts["denoiser"]}))
    assert [adapter.scale for adapter in stages.adapters] == [0.5, -1.0]
    assert stack.named == [
        {"file": str(tmp_path / "1.safetensors"), "scale": 0.5},
        {"file": str(tmp_path / "2.safetensors"), "scale": -1.0},
    ]
    # Prompts stay as they were encoded: no text encoder is changed.
    assert stack.key == ""
    stack.clear({"mmdit": parts["denoiser"]})
    assert same(snapshot(parts), before)
    assert (stages.adapters, stack.named) == ([], [])


def test_one_for_another_model_changes_nothing(tmp_path: Path, parts: Parts, stages: Any) -> None:
    stack, before = LoraStack(stages), snapshot(parts)
    layers = random_layers()
    name = "transformer_blocks.0.attn.to_q"
    up, down = layers[name]
    path = write(tmp_path / "other.safetensors", peft_file({**layers, name: (up, down[:, :-1])}))
    with pytest.raises(CheckpointError, match="another model"):
        stack.add(path, 1.0, {"mmdit": parts["denoiser"]})
    assert same(snapshot(parts), before)
    assert not stages.adapters


def test_all_modules_or_none(
    tmp_path: Path, parts: Parts, stages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = LoraStack(stages)
    loaded = {"mmdit": parts["denoiser"], "conditioning": parts["conditioning"]}
    stack.add(one(tmp_path, 1), 1.0, loaded)
    before, put = snapshot(parts), lora_stack.apply

    def fail_late(module: nn.Module, part: str, adapters: list[Any]) -> None:
        if part == "conditioning" and len(adapters) == 2:
            raise MemoryError
        put(module, part, adapters)

    monkeypatch.setattr(lora_stack, "apply", fail_late)
    with pytest.raises(MemoryError):
        stack.add(one(tmp_path, 2), 1.0, loaded)
    assert same(snapshot(parts), before)
    assert len(stages.adapters) == len(stack.named) == 1


def test_a_text_encoder_that_changes_is_known_by_its_file(tmp_path: Path, stages: Any) -> None:
    stem = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    tensors = {f"{stem}.lora_A.weight": torch.ones(2, 8), f"{stem}.lora_B.weight": torch.ones(8, 2)}
    path, stack = write(tmp_path / "words.safetensors", tensors), LoraStack(stages)
    keys = []
    for scale in (1.0, 0.5, 1.0):
        stack.add(path, scale, {})
        keys.append(stack.key)
        stack.clear({})
        assert stack.key == ""
    assert keys[0] == keys[2] != keys[1]

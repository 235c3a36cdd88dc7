"""The parsers of weights files, each with sound files to damage."""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

from fuzz.harness import Target

__all__ = ["WEIGHTS"]


def torch_seeds(folder: Path) -> list[bytes]:
    """Return small files of torch.save in both formats, with what training keeps beside."""
    import torch

    state = OrderedDict(a=torch.arange(6.0).reshape(2, 3), b=torch.nn.Parameter(torch.ones(2)))
    beside = {"epoch": 3, "args": OrderedDict(lr=0.1), "optimizer": {"state": {0: {"x": (1, 2)}}}}
    contents: list[dict[str, Any]] = [dict(state), {"model": state, **beside}]
    seeds = []
    for content in contents:
        for options in ({}, {"pickle_protocol": 5}, {"_use_new_zipfile_serialization": False}):
            file = io.BytesIO()
            torch.save(content, file, **options)
            seeds.append(file.getvalue())
    return seeds


def safetensors_seeds(folder: Path) -> list[bytes]:
    """Return a model with scaled fp8 and a LoRA with notes."""
    import torch
    from safetensors.torch import save

    matrix = torch.arange(4.0).view(2, 2)
    scaled = {"a.weight": matrix.to(torch.float8_e4m3fn), "a.scale_weight": torch.tensor(2.0)}
    lora = {f"transformer.a.lora_{side}.weight": matrix.clone() for side in "AB"}
    notes = {"lora_adapter_metadata": json.dumps({"transformer.r": 2, "transformer.lora_alpha": 4})}
    return [save(scaled), save(lora, notes), save({"module.x": matrix, "b": matrix.half()})]


def read_any(folder: Path, content: bytes) -> Any:
    """Read a file by every reader of weights; the last may refuse it."""
    from vkrt.errors import CheckpointError
    from vkrt.weights.checkpoint import read_shapes, read_tensors
    from vkrt.weights.family import holds_sd35
    from vkrt.weights.lora_file import read_lora
    from vkrt.weights.scaled_fp8 import without_scales
    from vkrt.weights.tensor_index import read_entries

    path = folder / "x.weights"
    # Replaced and not written over: what was read before is mapped.
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    holds_sd35(path)
    for reader in (read_lora, lambda path: without_scales(path, read_entries(path))):
        try:
            reader(path)
        except CheckpointError as error:
            assert str(error).isprintable()
    tensors = read_tensors(path)
    assert read_shapes(path) == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for tensor in tensors.values():
        tensor.clone()
    assert sum(tensor.nbytes for tensor in tensors.values()) <= 4 * len(content)


def read_shards(folder: Path, content: bytes) -> Any:
    """Read an index of shards."""
    from vkrt.weights.checkpoint import read_shapes

    write_shard(folder)
    (folder / "x.index.json").write_bytes(content)
    return read_shapes(folder / "x.index.json")


def read_settings(folder: Path, content: bytes) -> Any:
    """Read JSON as a config of diffusers and as peft's settings."""
    from vkrt.errors import CheckpointError
    from vkrt.weights.family import named_pipeline
    from vkrt.weights.lora_file import read_lora
    from vkrt.weights.sd35_sources import settings_of

    write_shard(folder)
    for name in ("config.json", "adapter_config.json", "model_index.json"):
        (folder / name).write_bytes(content)
    for reader in (named_pipeline, settings_of):
        try:
            reader(folder)
        except CheckpointError as error:
            assert str(error).isprintable()
    return read_lora(folder / "adapter_model.safetensors")


def write_shard(folder: Path) -> None:
    """Write a small LoRA once, which serves as a shard too."""
    path = folder / "adapter_model.safetensors"
    if not path.exists():
        path.write_bytes(safetensors_seeds(folder)[1])


NAMES = [f"transformer.a.lora_{side}.weight" for side in "AB"]
INDEX = {"metadata": {"total": 1}, "weight_map": dict.fromkeys(NAMES, "adapter_model.safetensors")}
SETTINGS = {"r": 2, "lora_alpha": 4, "use_rslora": True, "alpha_pattern": {"a": 2}, "hidden": "x"}

WEIGHTS = (
    Target("torch", torch_seeds, read_any),
    Target("safetensors", safetensors_seeds, read_any, "safetensors"),
    Target("shards", lambda _: [json.dumps(INDEX).encode()], read_shards, "json"),
    Target("settings", lambda _: [json.dumps(SETTINGS).encode()], read_settings, "json"),
)

"""Find the weights files of a folder that save_pretrained wrote (transformers, diffusers)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from vkrt.errors import CheckpointError
from vkrt.weights.bounded_json import parse_json
from vkrt.weights.safety_limits import MAX_INDEX_BYTES, MAX_TENSORS, listed, shown

__all__ = ["Parts", "find_parts"]

SINGLE_FILES = (
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin",
)
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
# One file of several, as save_pretrained numbers them.
SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.[a-z]+")


class Parts(NamedTuple):
    """List the files that hold one model, and the tensors that an index promises in them."""

    files: list[Path]
    promised: frozenset[str] = frozenset()


def find_parts(path: Path) -> Parts:
    """Return the weights files of a file, a folder or an index; safetensors come first.

    Raises:
        CheckpointError: there is nothing there, no weights or more than one candidate, or an
            index that is damaged or names files that are missing or outside the folder.
    """
    try:
        if path.is_file():
            return parts_of_index(path) if path.suffix == ".json" else parts_of_file(path)
        if path.is_dir():
            return parts_of_folder(path)
        exists = path.exists()
    except OSError as error:
        reason = error.strerror or "unknown reason"
        raise CheckpointError(f"{shown(path, 1000)} can't be read: {reason}") from None
    if exists:
        raise CheckpointError(f"{shown(path, 1000)} is no file: give a checkpoint file or folder")
    raise CheckpointError(f"{shown(path, 1000)} does not exist: give a checkpoint file or folder")


def parts_of_file(path: Path) -> Parts:
    """Return a file, or all shards of what it is a shard of, if their index lies beside it.

    Raises:
        CheckpointError: it is one of several, and there is no index.
    """
    number = SHARD.search(path.name)
    if number is None or int(number[2]) < 2:
        return Parts([path])
    for index in sorted(path.parent.glob("*.index*.json")):
        parts = parts_of_index(index)
        if path in parts.files:
            return parts
    raise CheckpointError(
        f"{shown(path, 1000)} is one of {int(number[2])} shards, and their index is not beside it: "
        "get the whole folder"
    )


def parts_of_folder(folder: Path) -> Parts:
    """Return the weight files of a folder, whole or in shards."""
    for name in SINGLE_FILES:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return Parts([folder / name])
        if index.is_file():
            return parts_of_index(index)
    # Of a variant, such as "fp16".
    variants = sorted(folder.glob("*.safetensors.index*.json"))
    if len(variants) == 1:
        return parts_of_index(variants[0])
    candidates = sorted(f for f in folder.iterdir() if f.suffix in SUFFIXES and f.is_file())
    if len(candidates) == 1:
        return Parts(candidates)
    found = listed(file.name for file in candidates) if candidates else "nothing like it"
    raise CheckpointError(
        f"{shown(folder, 1000)} has no model.safetensors ({found} there): "
        "give a folder that save_pretrained wrote, or the file itself"
    )


def parts_of_index(index: Path) -> Parts:
    """Return the shards that an index names.

    Format: {"weight_map": {tensor name: file name}}.
    """
    promised = read_index(index)
    names = sorted(set(promised.values()))
    # ".." is its own name to pathlib; "\\" and ":" lead elsewhere on Windows.
    outside = [n for n in names if Path(n).name != n or n == ".." or set(n) & set("\\:\0")]
    if outside:
        raise CheckpointError(
            f"{shown(index, 1000)} names files outside its folder ({listed(outside)}): "
            "get the folder again from a source you trust"
        )
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{shown(index.parent, 1000)} lacks {listed(missing)}: get the missing files"
        )
    return Parts([index.parent / name for name in names], frozenset(promised))


def read_index(index: Path) -> dict[str, str]:
    """Return which shard holds each tensor, as an index file says."""
    damaged = CheckpointError(
        f"{shown(index, 1000)} is not an index of shards: get it again, or give the weights "
        "themselves"
    )
    if index.stat().st_size > MAX_INDEX_BYTES:
        raise damaged
    try:
        content = parse_json(index.read_bytes())
    except ValueError:
        raise damaged from None
    promised = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(promised, dict) or not 0 < len(promised) <= MAX_TENSORS:
        raise damaged
    if not all(isinstance(name, str) and name for name in promised.values()):
        raise damaged
    return promised

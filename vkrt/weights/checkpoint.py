"""Read tensors from any checkpoint, strictly: hostile or damaged files are refused in one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from vkrt.errors import CheckpointError
from vkrt.weights.folder import find_parts
from vkrt.weights.safetensors_file import read_safetensors, safetensors_shapes
from vkrt.weights.safety_limits import MAX_TENSORS, listed, shown
from vkrt.weights.torch_file import read_torch, torch_shapes
from vkrt.weights.torch_records import is_legacy
from vkrt.weights.wrapped_names import unwrapped

__all__ = ["read_shapes", "read_tensors"]

T = TypeVar("T")

# What is there in place of weights, by its first bytes: a download that went wrong, or the format
# of another program.
MISTAKEN = {
    b"<": "a web page, not a checkpoint: get it again",
    b"version https://git-lfs": (
        "a git-lfs pointer (run `git lfs pull`), not a checkpoint: get it again"
    ),
    b"GGUF": "a GGUF file, whose quantized weights are not read: get a .safetensors file",
    b"\x89HDF": "an HDF5 file, as Keras writes it: get a .safetensors file",
}
SNIFFED_BYTES = 32


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, on the CPU, in the file's own dtypes.

    They are mapped into memory: pages load when touched and several processes share them.
    Whoever renews the file has to replace it by a rename, not overwrite it in place.

    Args:
        path: a .safetensors file, a file that torch.save wrote in its present or its old format
            (see find_state_dict for what else it may hold), a folder that save_pretrained wrote,
            in shards or not, or the index of its shards. The content decides what it is, not the
            name. Names come without "module." and the like, which wrappers put there.

    Raises:
        CheckpointError: there is no such file, it is damaged, holds code, or claims more than
            20,000 tensors or a header of more than 16 MiB. Nothing large is allocated before.

    Warns:
        RuntimeWarning: a file holds several sets of weights; says which is taken.
    """
    return gather(Path(path), tensors_of_file)


def read_shapes(path: str | os.PathLike[str]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a checkpoint's tensors by name, without reading their values.

    Arguments and errors as in read_tensors.
    """
    return gather(Path(path), shapes_of_file)


def gather(path: Path, read: Callable[[Path], dict[str, T]]) -> dict[str, T]:
    """Return what `read` finds in every file of a checkpoint."""
    parts = find_parts(path)
    merged: dict[str, T] = {}
    for file in parts.files:
        found = read(file)
        twice = sorted(merged.keys() & found.keys())
        if twice:
            raise CheckpointError(f"{shown(path, 1000)} holds {listed(twice)} in two shards")
        merged.update(found)
        if len(merged) > MAX_TENSORS:
            raise CheckpointError(
                f"{shown(path, 1000)} holds more than the {MAX_TENSORS:,} tensors that are read"
            )
    absent = sorted(parts.promised - merged.keys())
    if absent:
        raise CheckpointError(
            f"{shown(path, 1000)} lacks tensors that its index names ({listed(absent)}): "
            "get the folder again"
        )
    if not merged:
        raise CheckpointError(f"{shown(path, 1000)} holds no tensors: give a checkpoint")
    return unwrapped_in(path, merged)


def unwrapped_in(path: Path, tensors: dict[str, T]) -> dict[str, T]:
    """Return the tensors of a checkpoint under their names without wrappers."""
    try:
        return unwrapped(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{shown(path, 1000)}: {error}") from None


def tensors_of_file(path: Path) -> dict[str, Tensor]:
    """Return the tensors of one file of either kind by name."""
    return read_safetensors(path) if is_safetensors(path) else read_torch(path)


def shapes_of_file(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of one file by name; of safetensors only the header is read."""
    if is_safetensors(path):
        return safetensors_shapes(path)
    return torch_shapes(path)


def is_safetensors(path: Path) -> bool:
    """Tell a safetensors file (True) from one of torch.save (False) by its first bytes.

    Raises:
        CheckpointError: it is neither, or can't be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(SNIFFED_BYTES)
    except OSError as error:
        raise CheckpointError(
            f"{shown(path, 1000)} can't be read: {error.strerror or 'unknown reason'}"
        ) from None
    if head.startswith(b"PK\x03\x04") or is_legacy(head):
        return False
    if head[8:9] == b"{":
        return True
    raise CheckpointError(f"{shown(path, 1000)} {why_no_checkpoint(head)}")


def why_no_checkpoint(head: bytes) -> str:
    """Return what is wrong with a file of another kind, by its first bytes."""
    if not head:
        return "is empty: get it again"
    for start, what in MISTAKEN.items():
        if head.startswith(start):
            return f"is {what}"
    if head.startswith(b"\x80"):
        return (
            "is a bare pickle, which can hold code, and was not loaded: "
            "get a .safetensors file or the official .pt"
        )
    return "is not a checkpoint: give a .safetensors or .pt file"

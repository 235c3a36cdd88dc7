"""Make a tensor of a module from runs of values in safetensors files, in the wanted dtype."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vkrt.errors import CheckpointError
from vkrt.weights.mapped_file import MappedFile
from vkrt.weights.safetensors_file import damaged
from vkrt.weights.safety_limits import shown
from vkrt.weights.tensor_index import Entry, Scale, read_run

__all__ = ["Assembler", "Recipe", "Run"]


@dataclass(frozen=True)
class Run:
    """Name values of a tensor that follow one another: `count` from the `first` on.

    Where it is scaled (fp8), they are to be multiplied by `scale`.
    """

    entry: Entry
    first: int
    count: int
    scale: Scale | None = None


class Recipe(NamedTuple):
    """Say what a tensor is made of: runs, one behind the other; without any, it is an identity."""

    shape: tuple[int, ...]
    runs: tuple[Run, ...]


class Assembler:
    """Make tensors in one dtype.

    A tensor that is in its file as it is wanted is mapped into memory: no copy is made, pages
    load when touched, and whoever changes it does not change the file. Others are read piece by
    piece into their place, so that nothing but what is returned takes memory.

    Args:
        dtype: of every tensor.
        check: whether values are looked at for NaN and infinity, which reads mapped ones in full.
    """

    def __init__(self, dtype: torch.dtype, check: bool = True) -> None:
        self.dtype = dtype
        self.check = check
        self.files: dict[Path, MappedFile] = {}

    def make(self, name: str, recipe: Recipe) -> Tensor:
        """Return a tensor on the CPU, contiguous.

        Raises:
            CheckpointError: it holds NaN or infinity, values beyond the dtype, or the file is
                damaged.
        """
        if not recipe.runs:
            return torch.eye(*recipe.shape, dtype=self.dtype)
        tensor = self.mapped(recipe) if self.is_ready(recipe) else self.read(recipe)
        if self.check and not is_finite(tensor):
            self.explain(name, recipe)
        return tensor

    def is_ready(self, recipe: Recipe) -> bool:
        """Return whether a whole tensor of the file is what is wanted."""
        entry = recipe.runs[0].entry
        is_aligned = entry.offset % self.dtype.itemsize == 0
        is_plain = len(recipe.runs) == 1 and recipe.runs[0].scale is None
        return is_plain and entry.dtype == self.dtype and is_aligned

    def mapped(self, recipe: Recipe) -> Tensor:
        """Return a tensor of a file, in place."""
        run = recipe.runs[0]
        entry = run.entry
        file = self.files.setdefault(entry.path, MappedFile(entry.path))
        try:
            values = file.values(entry.offset, run.count, self.dtype)
        except (OSError, ValueError) as error:
            # The file may have changed since its header was read.
            raise damaged(entry.path, error) from None
        return values.view(recipe.shape)

    def read(self, recipe: Recipe) -> Tensor:
        """Return a tensor read run by run."""
        tensor = torch.empty(recipe.shape, dtype=self.dtype)
        places = tensor.flatten().split([run.count for run in recipe.runs])
        for run, place in zip(recipe.runs, places, strict=True):
            try:
                read_run(run.entry, run.first, place, run.scale)
            except OSError as error:
                raise damaged(run.entry.path, error) from None
        return tensor

    def explain(self, name: str, recipe: Recipe) -> None:
        """Raise the error of a tensor that is not finite."""
        path = recipe.runs[0].entry.path
        if is_finite(Assembler(torch.float32).read(recipe)):
            raise CheckpointError(
                f"{shown(path, 1000)}: {name} holds values beyond {self.dtype}: "
                "load it as bf16 or fp32"
            )
        raise CheckpointError(
            f"{shown(path, 1000)}: {name} holds NaN or infinity: get an undamaged checkpoint"
        )


def is_finite(tensor: Tensor) -> bool:
    """Return whether every value is; the extremes carry any NaN or infinity."""
    return bool(torch.stack(tensor.aminmax()).isfinite().all())

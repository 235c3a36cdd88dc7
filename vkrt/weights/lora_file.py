"""Read a LoRA of any form: which weights it changes, and how."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vkrt.errors import CheckpointError
from vkrt.weights.checkpoint import read_tensors
from vkrt.weights.extra_parts import split_off, warn_left_out
from vkrt.weights.family import family_of
from vkrt.weights.lora_layer import Layer, Matrix, make_matrix
from vkrt.weights.lora_names import address_of, extra_of, split_key
from vkrt.weights.lora_notes import Notes, read_notes
from vkrt.weights.safety_limits import listed, shown

__all__ = ["Lora", "read_lora"]

CONVOLUTION_NDIM = 4


# Equal only to itself, so that it can be a key of a cache.
@dataclass(frozen=True, eq=False)
class Lora:
    """Hold the changes that a LoRA makes to the weights of a model.

    Attributes:
        path: where it was read.
        layers: one for each weight, or slice of one, that it changes.
    """

    path: Path
    layers: tuple[Layer, ...]

    @property
    def parts(self) -> frozenset[str]:
        """Return the parts of the model that it changes."""
        return frozenset(layer.address.part for layer in self.layers)


def read_lora(path: str | os.PathLike[str]) -> Lora:
    """Read a LoRA, LoHa or LoKr, with or without DoRA's magnitudes; its tensors stay mapped.

    The names may be those of peft and diffusers, kohya, OneTrainer or LyCORIS. Embeddings and
    changes of norms and biases that come along are left out. A layer without
    an alpha of its own has the one that diffusers' metadata or peft's adapter_config.json give,
    else its rank, so that alpha / rank is 1.

    Args:
        path: a file as in read_tensors, or a folder that peft or diffusers saved one to.

    Raises:
        CheckpointError: it is no LoRA, damaged, or of a form that is not supported; the message
            names the first tensor at fault.

    Warns:
        RuntimeWarning: something was left out.
    """
    path = Path(path)
    tensors, left = split_off(read_tensors(path), extra_of)
    try:
        notes = read_notes(path)
        groups = group(tensors)
        layers = tuple(make_layer(stem, roles, notes) for stem, roles in groups.items())
    except CheckpointError as error:
        raise CheckpointError(f"{shown(path, 1000)}: {error}") from None
    warn_left_out(path, left)
    return Lora(path, layers)


def group(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each layer by their roles."""
    groups: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, tensor in tensors.items():
        split = split_key(key)
        if split is None:
            unknown.append(key)
            continue
        roles = groups.setdefault(split[0], {})
        if split[1] in roles:
            raise CheckpointError(
                f"{shown(key)} comes twice: save the LoRA with one adapter to a file"
            )
        roles[split[1]] = tensor
    if not groups:
        family = family_of(unknown)
        if family is not None:
            raise CheckpointError(f"it is no LoRA but {family}")
        raise CheckpointError(f"it holds no LoRA but {listed(unknown)}: give a LoRA file")
    if unknown:
        raise CheckpointError(
            f"{shown(unknown[0])} is no known part of a LoRA, LoHa or LoKr: save it as plain LoRA"
        )
    return groups


def make_layer(stem: str, roles: Mapping[str, Tensor], notes: Notes) -> Layer:
    """Return the layer that some tensors make."""
    for role, tensor in roles.items():
        check_values(f"{stem}.{role}", tensor)
    factors = {k: v for k, v in roles.items() if k not in ("alpha", "magnitude")}
    matrix = make_matrix(stem, factors)
    return Layer(
        name=stem,
        address=address_of(stem),
        matrix=matrix,
        strength=strength_of(stem, roles, matrix, notes),
        magnitude=magnitude_of(stem, roles, matrix),
    )


def check_values(name: str, tensor: Tensor) -> None:
    """Refuse what would spoil the weights."""
    try:
        if tensor.is_complex():
            raise RuntimeError("nothing of it is real")
        finite = not tensor.numel() or torch.stack(tensor.double().aminmax()).isfinite().all()
    except RuntimeError:
        raise CheckpointError(
            f"{shown(name)} is {tensor.dtype}, which is not converted: save it as fp16 or bf16"
        ) from None
    if not finite:
        raise CheckpointError(f"{shown(name)} holds NaN or infinity: get an undamaged LoRA")


def strength_of(stem: str, roles: Mapping[str, Tensor], matrix: Matrix, notes: Notes) -> float:
    """Return alpha / rank of a layer."""
    alpha = roles.get("alpha")
    if alpha is None:
        return notes.strength(stem, matrix.rank)
    if alpha.numel() != 1:
        raise CheckpointError(f"{shown(stem)}.alpha is no single number: get an undamaged LoRA")
    # LyCORIS stores an alpha beside a product of whole matrices too, and doesn't use it.
    return alpha.item() / matrix.rank if matrix.rank else 1.0


def magnitude_of(stem: str, roles: Mapping[str, Tensor], matrix: Matrix) -> Tensor | None:
    """Return the magnitudes of DoRA as (rows, 1) or (1, columns), None if there are none."""
    values = roles.get("magnitude")
    if values is None:
        return None
    rows, columns = matrix.shape
    # peft stores those of a convolution as (1, rows, 1, 1).
    if values.numel() == rows and (values.shape[0] == rows or values.ndim == CONVOLUTION_NDIM):
        return values.reshape(rows, 1)
    if values.numel() == columns and values.shape[0] == 1:
        return values.reshape(1, columns)
    raise CheckpointError(
        f"the magnitudes of {shown(stem)} have shape {list(values.shape)} for a {rows}x{columns} "
        "weight: get an undamaged LoRA"
    )

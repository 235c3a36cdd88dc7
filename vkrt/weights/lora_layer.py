"""What a LoRA does to one weight: matrices kept as small factors, and the change they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vkrt.errors import CheckpointError
from vkrt.weights.lora_names import Address
from vkrt.weights.safety_limits import listed, shown

__all__ = ["Hadamard", "Kronecker", "Layer", "LowRank", "Matrix", "Whole", "make_matrix"]

LORA = {"up", "down"}
LOHA = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}


class Matrix(Protocol):
    """Stand for a matrix that is worked out when needed.

    Attributes:
        shape: rows and columns.
        rank: of its factors; None where it is stored whole.
    """

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def rank(self) -> int | None: ...

    def on(self, device: torch.device) -> Tensor:
        """Return the matrix (rows, columns) in float32 on a device."""


@dataclass(frozen=True)
class Whole:
    """Hold a matrix as it is; further dimensions count as columns."""

    values: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values[0].numel()

    @property
    def rank(self) -> None:
        return None

    def on(self, device: torch.device) -> Tensor:
        return self.values.to(device).flatten(1).float()


@dataclass(frozen=True)
class LowRank:
    """Hold up @ down (https://arxiv.org/abs/2106.09685): up (rows, rank), down (rank, columns)."""

    up: Whole
    down: Whole

    @property
    def shape(self) -> tuple[int, int]:
        return self.up.shape[0], self.down.shape[1]

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def on(self, device: torch.device) -> Tensor:
        return self.up.on(device) @ self.down.on(device)


@dataclass(frozen=True)
class Hadamard:
    """Hold the elementwise product of two matrices: LoHa (https://arxiv.org/abs/2108.06098)."""

    left: LowRank
    right: LowRank

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape

    @property
    def rank(self) -> int:
        return self.left.rank

    def on(self, device: torch.device) -> Tensor:
        return self.left.on(device) * self.right.on(device)


@dataclass(frozen=True)
class Kronecker:
    """Hold the Kronecker product of two matrices: LoKr (https://arxiv.org/abs/2309.14859)."""

    left: Matrix
    right: Matrix

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0] * self.right.shape[0], self.left.shape[1] * self.right.shape[1]

    @property
    def rank(self) -> int | None:
        return self.right.rank or self.left.rank

    def on(self, device: torch.device) -> Tensor:
        return torch.kron(self.left.on(device), self.right.on(device))


@dataclass(frozen=True)
class Layer:
    """Hold what a LoRA does to one weight.

    Attributes:
        name: of its tensors in the file, up to their roles.
        address: the weight it means.
        matrix: the direction of the change.
        strength: what the matrix is multiplied by: alpha / rank.
        magnitude: norms of the changed weight's rows (rows, 1) or columns (1, columns); None
            where the change is just added.
    """

    name: str
    address: Address
    matrix: Matrix
    strength: float
    magnitude: Tensor | None = None

    def change(self, weight: Tensor) -> Tensor:
        """Return what to add to a weight.

        Formula: strength * matrix; with a magnitude, DoRA (https://arxiv.org/abs/2402.09353):
        magnitude * v / |v| - weight with v = weight + strength * matrix.

        Args:
            weight: (rows, columns) float32 as the file's model has it; only the device counts
                where there is no magnitude.
        """
        change = self.matrix.on(weight.device).mul_(self.strength)
        if self.magnitude is None:
            return change
        changed = change.add_(weight)
        magnitude = self.magnitude.to(weight.device).float()
        along = 1 if magnitude.shape[1] == 1 else 0
        # A row of zeros has no direction: it stays as it is.
        norm = torch.linalg.vector_norm(changed, dim=along, keepdim=True)
        norm = norm.clamp_min(torch.finfo(torch.float32).tiny)
        return changed.mul_(magnitude / norm).sub_(weight)


def make_matrix(name: str, factors: Mapping[str, Tensor]) -> Matrix:
    """Return the matrix that factors make, by their roles.

    Raises:
        CheckpointError: one is missing, they don't fit together, or no known form has them all.
    """
    roles = set(factors)
    for role, tensor in factors.items():
        if tensor.ndim < 2 or not tensor.numel():
            raise CheckpointError(
                f"{shown(name)} has {role} of shape {list(tensor.shape)}, no matrix: "
                "get an undamaged LoRA"
            )
    if roles == {"diff"}:
        return Whole(factors["diff"])
    if roles == LORA:
        return low_rank(name, factors["up"], factors["down"])
    if roles == LOHA:
        left = low_rank(name, factors["hada_w1_a"], factors["hada_w1_b"])
        right = low_rank(name, factors["hada_w2_a"], factors["hada_w2_b"])
        if left.shape == right.shape:
            return Hadamard(left, right)
        raise misfit(name)
    left_roles = {role for role in roles if role.startswith("lokr_w1")}
    right_roles = {role for role in roles if role.startswith("lokr_w2")}
    if roles and roles == left_roles | right_roles and left_roles and right_roles:
        return Kronecker(factor(name, "lokr_w1", factors), factor(name, "lokr_w2", factors))
    raise incomplete(name, factors)


def factor(name: str, role: str, factors: Mapping[str, Tensor]) -> Matrix:
    """Return one side of a Kronecker product, which is stored whole or as two factors."""
    roles = {key for key in factors if key.startswith(role)}
    if roles == {role}:
        return Whole(factors[role])
    if roles == {f"{role}_a", f"{role}_b"}:
        return low_rank(name, factors[f"{role}_a"], factors[f"{role}_b"])
    raise incomplete(name, factors)


def low_rank(name: str, up: Tensor, down: Tensor) -> LowRank:
    """Return the product of two factors that share their rank."""
    product = LowRank(Whole(up), Whole(down))
    if product.up.shape[1] != product.rank:
        raise misfit(name)
    return product


def incomplete(name: str, factors: Mapping[str, Tensor]) -> CheckpointError:
    """Return the error for factors that make no whole."""
    held = listed(sorted(factors)) or "nothing"
    return CheckpointError(
        f"{shown(name)} has {held} alone, no whole LoRA, LoHa or LoKr: get an undamaged LoRA"
    )


def misfit(name: str) -> CheckpointError:
    """Return the error for factors that can't be multiplied."""
    return CheckpointError(
        f"the matrices of {shown(name)} don't fit together: get an undamaged LoRA"
    )

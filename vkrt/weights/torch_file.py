"""Read one file written by torch.save: tensors only, never code, and no more than it holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vkrt.errors import CheckpointError
from vkrt.weights.inert_pickle import CodeFoundError, Inert, Reader
from vkrt.weights.mapped_file import MappedFile
from vkrt.weights.safety_limits import MAX_REUSE, MAX_TENSOR_DIMENSIONS, shown
from vkrt.weights.state_dict import find_state_dict
from vkrt.weights.torch_records import (
    Place,
    Records,
    damaged,
    is_legacy,
    legacy_records,
    zip_records,
)

__all__ = ["read_torch", "torch_shapes"]

# The classes of storages by their names, as old as torch; newer dtypes come by their own names.
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
}
UNTYPED = "UntypedStorage"
# As many bytes of it are read at least.
SNIFFED_BYTES = 32


class StorageClaim(NamedTuple):
    """Say which storage is meant, and what it is said to hold.

    Attributes:
        key: its name in the file.
        dtype: of its values; uint8 where it has no dtype of its own.
        length: how many there are said to be.
    """

    key: str
    dtype: torch.dtype
    length: int


@dataclass(frozen=True, eq=False)
class TensorClaim:
    """Say what a tensor is made of; nothing of it was checked yet but the kinds of the numbers.

    Attributes:
        storage: where its values are; None where the file says so in a way that is not read:
            sparse, quantized and the like.
        dtype: of its values.
        offset: its first value in the storage.
        shape, stride: as torch has them.
    """

    storage: StorageClaim | None
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Return how much memory its values take."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def end(self) -> int:
        """Return the byte behind its last value in the storage."""
        if 0 in self.shape:
            return 0
        last = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return (self.offset + last + 1) * self.dtype.itemsize


def read_torch(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file that torch.save wrote, mapped into memory.

    A state dict among what training keeps is found as find_state_dict says.

    Raises:
        CheckpointError: the file holds code or no tensors by name, is damaged, or claims more
            than the limits or than its own size.
    """
    records, claims = checked_claims(path)
    file = MappedFile(path)
    wholes: dict[tuple[str, torch.dtype], Tensor] = {}
    try:
        # A file is mapped in its own order.
        for claim in sorted(claims.values(), key=lambda c: place_of(c, records).offset):
            key = whole_key(claim)
            if key not in wholes:
                wholes[key] = whole(file, place_of(claim, records), claim.dtype)
        return {name: view(wholes[whole_key(claim)], claim) for name, claim in claims.items()}
    except Exception:
        raise damaged(path) from None


def torch_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of a file, without reading their values.

    Raises:
        CheckpointError: as read_torch.
    """
    return {name: claim.shape for name, claim in checked_claims(path)[1].items()}


def checked_claims(path: Path) -> tuple[Records, dict[str, TensorClaim]]:
    """Return where the storages of a file lie, and what its tensors are."""
    storages: dict[str, int] = {}

    def persistent(saved_id: Any) -> StorageClaim:
        claim = storage_claim(saved_id)
        storages.setdefault(claim.key, claim.dtype.itemsize)
        return claim

    reader = Reader(CALLS, persistent)
    try:
        with path.open("rb") as file:
            legacy = is_legacy(file.read(SNIFFED_BYTES))
        records = legacy_records(path, reader, storages) if legacy else zip_records(path, reader)
    except CheckpointError:
        raise
    except CodeFoundError as error:
        raise CheckpointError(
            f"{shown(path, 1000)} holds Python code beside tensors ({error}) and was not loaded: "
            "get a .safetensors file or the official .pt"
        ) from None
    except Exception:
        # A crafted file can make a reader raise anything.
        raise damaged(path) from None
    state = find_state_dict(path, records.content, TensorClaim)
    check_claims(path, records, state)
    return records, state


def check_claims(path: Path, records: Records, claims: Mapping[str, TensorClaim]) -> None:
    """Refuse tensors that are not dense, or larger than what is there for them."""
    size = path.stat().st_size
    for name, claim in claims.items():
        # Strides of 0 let a few bytes pose as a tensor of any size.
        if claim.storage is None or claim.bytes > size:
            raise CheckpointError(
                f"{shown(path, 1000)} holds {shown(name)} as a sparse, quantized or expanded "
                "tensor: save it dense and contiguous"
            )
        place = records.places.get(claim.storage.key)
        if place is None or claim.end > place.size or place.offset + place.size > size:
            raise damaged(path)
        if claim.storage.length * claim.storage.dtype.itemsize > place.size:
            raise damaged(path)
    if sum(claim.bytes for claim in claims.values()) > MAX_REUSE * size:
        raise CheckpointError(
            f"{shown(path, 1000)} has tensors of {MAX_REUSE} times its own size, which repeat one "
            "another: save each once"
        )


def place_of(claim: TensorClaim, records: Records) -> Place:
    """Return where the storage of a tensor lies."""
    assert claim.storage is not None, "it was checked"
    return records.places[claim.storage.key]


def whole_key(claim: TensorClaim) -> tuple[str, torch.dtype]:
    """Return what tensors in one storage have in common."""
    assert claim.storage is not None, "it was checked"
    return claim.storage.key, claim.dtype


def whole(file: MappedFile, place: Place, dtype: torch.dtype) -> Tensor:
    """Return all values of a storage, mapped; a copy where they are not aligned to their size."""
    count = place.size // dtype.itemsize
    if not count:
        return torch.empty(0, dtype=dtype)
    values = file.values(place.offset, count, dtype)
    return values.clone() if values.data_ptr() % dtype.itemsize else values


def view(values: Tensor, claim: TensorClaim) -> Tensor:
    """Return a tensor in the values of its storage."""
    return values.as_strided(claim.shape, claim.stride, claim.offset)


# What the names in a pickle of torch.save mean


def storage_claim(saved_id: Any) -> StorageClaim:
    """Return the storage that a persistent id names.

    Raises:
        ValueError: it is no such id.
    """
    kind, storage, key, _, count, *view = saved_id
    if kind != "storage" or not isinstance(key, str) or not isinstance(storage, Inert):
        raise ValueError("it refers to what is no storage")
    if any(part is not None for part in view):
        raise ValueError("it has views of storages, which torch no longer writes")
    (count,) = naturals((count,))
    name = storage.name.rpartition(".")[2]
    return StorageClaim(key, torch.uint8 if name == UNTYPED else STORAGES[name], count)


def naturals(numbers: Any) -> tuple[int, ...]:
    """Return numbers as they are.

    Raises:
        ValueError: one is no natural number of 63 bits, or there are too many.
    """
    if not isinstance(numbers, tuple) or len(numbers) > MAX_TENSOR_DIMENSIONS:
        raise ValueError("sizes of it are no tuple, or too many")
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise ValueError("sizes of it are no natural numbers")
    return numbers


def rebuild(storage: Any, offset: Any, shape: Any, stride: Any, *others: Any) -> TensorClaim:
    """Return the tensor that _rebuild_tensor_v2 is called for."""
    if not isinstance(storage, StorageClaim):
        raise ValueError("a tensor of it has no storage")
    (offset,) = naturals((offset,))
    shape, stride = naturals(shape), naturals(stride)
    if len(shape) != len(stride):
        raise ValueError("a tensor of it has another number of strides than of sizes")
    return TensorClaim(storage, storage.dtype, offset, shape, stride)


def rebuild_newer(
    storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> TensorClaim:
    """Return the tensor that _rebuild_tensor_v3 is called for."""
    claim = rebuild(storage, offset, shape, stride)
    found = getattr(torch, dtype.name.rpartition(".")[2])
    if not isinstance(found, torch.dtype):
        raise ValueError("a tensor of it has no dtype")
    return TensorClaim(claim.storage, found, claim.offset, claim.shape, claim.stride)


def unreadable(*arguments: Any) -> TensorClaim:
    """Return a tensor that is not dense."""
    return TensorClaim(None, torch.uint8, 0, (), ())


def parameter(data: Any, *others: Any) -> Any:
    """Return what a parameter holds."""
    return data


def subclassed(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """Return what _rebuild_from_type_v2 calls for: a tensor, whatever its class."""
    return CALLS[function.name](*arguments)


def mapping(*arguments: Any) -> Any:
    """Return the dict that stands for any class of dict, empty: items come in later steps."""
    return {}


def size(values: Any = ()) -> tuple[int, ...]:
    """Return the tuple that a torch.Size is."""
    return naturals(values)


CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": mapping,
    "collections.defaultdict": mapping,
    "collections.Counter": mapping,
    "builtins.dict": mapping,
    "torch.Size": size,
    "torch._utils._rebuild_tensor": rebuild,
    "torch._utils._rebuild_tensor_v2": rebuild,
    "torch._utils._rebuild_tensor_v3": rebuild_newer,
    "torch._utils._rebuild_parameter": parameter,
    "torch._utils._rebuild_parameter_with_state": parameter,
    "torch._tensor._rebuild_from_type_v2": subclassed,
    **{
        f"torch._utils._rebuild_{kind}": unreadable
        for kind in (
            *("sparse_tensor", "sparse_csr_tensor", "nested_tensor", "qtensor"),
            *("meta_tensor_no_storage", "wrapper_subclass", "device_tensor_from_numpy"),
            "device_tensor_from_cpu_tensor",
        )
    },
}

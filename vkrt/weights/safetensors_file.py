"""Read one .safetensors file: the header's claims are checked before anything is allocated.

Imports no torch; tensors are read with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from vkrt.errors import CheckpointError
from vkrt.weights.bounded_json import check_json
from vkrt.weights.safety_limits import (
    MAX_HEADER_BYTES,
    MAX_HEADER_VALUES,
    MAX_TENSOR_DIMENSIONS,
    MAX_TENSORS,
    shown,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["check_dimensions", "open_checked", "read_safetensors", "safetensors_shapes"]

LENGTH_BYTES = 8


def check_header(path: Path) -> None:
    """Check that the header is as long as it may be, all there, and of few enough tensors.

    Format: 8 bytes little-endian length, then that much JSON, then the data
    (https://huggingface.co/docs/safetensors).

    Raises:
        CheckpointError: it is not.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        if length > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{shown(path, 1000)} claims a header of {length:,} bytes, and at most "
                f"{MAX_HEADER_BYTES:,} are read: it is damaged or hostile, get it again"
            )
        if size < LENGTH_BYTES + length:
            raise CheckpointError(f"{shown(path, 1000)} is truncated: get it again")
        header = file.read(length)
    # Counting bytes costs no memory; the parser would build an object for each.
    check_count(path, header.count(b'"data_offsets"'))
    try:
        check_json(header, MAX_HEADER_VALUES)
    except ValueError as error:
        raise damaged(path, error) from None


def check_count(path: Path, count: int) -> None:
    """Refuse a file of more tensors than are read."""
    if count > MAX_TENSORS:
        raise CheckpointError(
            f"{shown(path, 1000)} holds {count:,} tensors, and at most {MAX_TENSORS:,} are read: "
            "give the checkpoint of one model"
        )


def open_checked(path: Path, framework: str = "pt") -> Any:
    """Return the library's open file, whose offsets and shapes it has checked.

    For "pt" all of it is mapped for writing at once, which the system refuses for a file larger
    than the memory of the machine; "numpy" is for headers.
    """
    check_header(path)
    file = safe_open(str(path), framework=framework, device="cpu")
    check_count(path, len(file.keys()))
    return file


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file; they are mapped into memory, so pages load when touched.

    Raises:
        CheckpointError: the file is damaged or beyond the limits.
    """
    try:
        with open_checked(path) as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            for tensor in found.values():
                check_dimensions(tensor.ndim)
            return found
    except CheckpointError:
        raise
    except Exception as error:
        # A crafted file can make a reader raise anything.
        raise damaged(path, error) from None


def safetensors_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a file's tensors; only its header is read.

    Raises:
        CheckpointError: the file is damaged or beyond the limits.
    """
    try:
        with open_checked(path, "numpy") as file:
            names = file.keys()
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        for shape in shapes.values():
            check_dimensions(len(shape))
        return shapes
    except CheckpointError:
        raise
    except Exception as error:
        raise damaged(path, error) from None


def check_dimensions(count: int) -> None:
    """Refuse a tensor of more dimensions than torch handles.

    Raises:
        ValueError: there are more.
    """
    if count > MAX_TENSOR_DIMENSIONS:
        raise ValueError(f"it has a tensor of {count:,} dimensions")


def damaged(path: Path, error: Exception) -> CheckpointError:
    """Return the error for a file that is not whole."""
    reason = shown(str(error).removeprefix("Error while deserializing header: "))
    return CheckpointError(
        f"{shown(path, 1000)} is not a whole safetensors file ({reason}): get it again"
    )

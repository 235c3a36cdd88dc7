"""Read one file written by torch.save: tensors only, never code, and no more than it holds."""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from vkrt.errors import CheckpointError
from vkrt.weights.safety_limits import MAX_INDEX_BYTES, MAX_TENSORS, shown

__all__ = ["read_torch"]

# Where training code puts the weights among the rest; the official files use the first.
WRAPPERS = ("model", "state_dict")
# Records of an archive that are no tensors: the pickle, the version and the like.
OTHER_RECORDS = 16

# The fixed parts of a zip's end: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
END = struct.Struct("<4s4H2IH")
LOCATOR = struct.Struct("<4sIQI")
END64 = struct.Struct("<4sQ2H2I4Q")
# A 32-bit field whose value stands in the 64-bit record.
UNKNOWN = 0xFFFFFFFF


def read_torch(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a zip that torch.save wrote, mapped into memory.

    A state dict under "model" or "state_dict" is unwrapped.

    Raises:
        CheckpointError: the file holds code or anything else than tensors, is damaged, or claims
            more than the limits or than its own size.
    """
    check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = load(path)
    except pickle.UnpicklingError as error:
        raise not_only_tensors(path, str(error)) from None
    except Exception:
        # A crafted file can make a reader raise anything.
        raise damaged(path) from None
    return checked_tensors(path, unwrap(content))


def load(path: Path) -> Any:
    """Return what a torch file holds, running no code from it."""
    if path.suffix != ".safetensors":
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    # Given this name, torch would go by it; given an open file it can't map it.
    with path.open("rb") as file:
        return torch.load(file, map_location="cpu", weights_only=True)


def check_archive(path: Path) -> None:
    """Check the directory of the zip, so that what is read after it stays small."""
    with path.open("rb") as file:
        if directory_bytes(path, file) > MAX_INDEX_BYTES:
            raise too_many(path)
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except Exception:
        raise damaged(path) from None
    if len(records) > MAX_TENSORS + OTHER_RECORDS:
        raise too_many(path)
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise CheckpointError(
            f"{shown(path, 1000)} is a compressed zip, which torch.save never writes: "
            "unpack it, or get the checkpoint again"
        )
    if sum(record.file_size for record in records) > path.stat().st_size:
        raise damaged(path)
    check_pickle(path, records)


def directory_bytes(path: Path, file: BinaryIO) -> int:
    """Return the size of a zip's directory as its end claims it.

    torch.save writes no comment after the end, so any other layout is refused: two readers
    could take different ends for the true one.
    """
    tail_bytes = END64.size + LOCATOR.size + END.size
    size = path.stat().st_size
    file.seek(max(size - tail_bytes, 0))
    tail = file.read().rjust(tail_bytes, b"\0")
    end = END.unpack(tail[-END.size :])
    if end[0] != b"PK\x05\x06" or end[7]:
        raise damaged(path)
    if tail[END64.size :].startswith(b"PK\x06\x07"):
        end64, locator = (
            END64.unpack(tail[: END64.size]),
            LOCATOR.unpack(tail[END64.size : -END.size]),
        )
        if end64[0] != b"PK\x06\x06" or locator[2] != size - tail_bytes:
            raise damaged(path)
        return max(end64[8], 0 if end[5] == UNKNOWN else end[5])
    return end[5]


def check_pickle(path: Path, records: list[zipfile.ZipInfo]) -> None:
    """Refuse an archive that is a program or has no list of tensors."""
    names = {record.filename.rpartition("/")[2] for record in records}
    if "constants.pkl" in names:
        raise CheckpointError(
            f"{shown(path, 1000)} is a TorchScript program: save its state_dict() instead"
        )
    if "data.pkl" not in names:
        raise CheckpointError(
            f"{shown(path, 1000)} is a zip that torch.save did not write: "
            "give a .pt or .safetensors checkpoint"
        )
    pickles = (record.file_size for record in records if record.filename.endswith(".pkl"))
    if sum(pickles) > MAX_INDEX_BYTES:
        raise too_many(path)


def unwrap(content: Any) -> Any:
    """Return the state dict inside a training checkpoint, or what was given."""
    if isinstance(content, Mapping):
        for key in WRAPPERS:
            if isinstance(content.get(key), Mapping):
                return content[key]
    return content


def checked_tensors(path: Path, content: Any) -> dict[str, Tensor]:
    """Return the content if it is nothing but plain tensors that the file really holds."""
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{shown(path, 1000)} holds a {type(content).__name__}, not tensors by name: "
            "save a state_dict()"
        )
    if len(content) > MAX_TENSORS:
        raise too_many(path)
    size = path.stat().st_size
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{shown(path, 1000)} holds a {type(value).__name__} under {shown(name)}, "
                "not a tensor: save a state_dict()"
            )
        plain = value.layout == torch.strided and value.device.type == "cpu"
        # Strides of 0 let a few bytes pose as a tensor of any size.
        if not plain or value.is_quantized or value.numel() * value.element_size() > size:
            raise CheckpointError(
                f"{shown(path, 1000)} holds {shown(name)} as a sparse, quantized or expanded "
                "tensor: save it dense and contiguous"
            )
    return {name: value.detach() for name, value in content.items()}


def not_only_tensors(path: Path, reason: str) -> CheckpointError:
    """Return the error for a file that would run code or build objects."""
    culprit = re.search(r"GLOBAL ([\w.]+)", reason)
    what = f" ({shown(culprit[1])})" if culprit else ""
    return CheckpointError(
        f"{shown(path, 1000)} holds Python code or objects beside tensors{what} and was not "
        "loaded: get a .safetensors file or the official .pt"
    )


def too_many(path: Path) -> CheckpointError:
    """Return the error for a file of more tensors than are read."""
    return CheckpointError(
        f"{shown(path, 1000)} holds more than the {MAX_TENSORS:,} tensors that are read: "
        "give the checkpoint of one model"
    )


def damaged(path: Path) -> CheckpointError:
    """Return the error for a file that is not whole."""
    return CheckpointError(f"{shown(path, 1000)} is truncated or damaged: get it again")

"""Image embeddings on disk: safetensors with a header that names the model and the photo."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from vkrt.errors import CheckpointError
from vkrt.limited import parse_json
from vkrt.media.files import write_atomically
from vkrt.media.planes import LONGEST_SIDE
from vkrt.weights.safety_limits import MAX_EMBEDDING_BYTES, shown

__all__ = ["EmbeddingHeader", "feature_maps", "read_embedding", "write_embedding"]

SCHEMA = 2
HIGH_RES = ("high_res_s0", "high_res_s1")


@dataclass(frozen=True)
class EmbeddingHeader:
    """Say what an embedding belongs to.

    Attributes:
        model: catalog name of the model.
        fingerprint: digest of its weights.
        size: height and width of the photo, in pixels.
        key: digest of the photo's content.
    """

    model: str
    fingerprint: str
    size: tuple[int, int]
    key: str


def feature_maps(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return an encoder's features as maps.

    Args:
        arrays: image (B, G * G, C) and high_res_s0 and high_res_s1, (B, G * G, F * F, C) in block
            order: cell by cell of the grid, each halved in both directions until single.

    Returns:
        image (B, C, G, G), high_res_s0 and high_res_s1 (B, C, F * G, F * G).
    """
    image = arrays["image"]
    grid = math.isqrt(image.shape[1])
    maps = {"image": image.reshape(len(image), grid, grid, -1).transpose(0, 3, 1, 2)}
    for name in HIGH_RES:
        blocks = arrays[name]
        halvings = (math.isqrt(blocks.shape[2])).bit_length() - 1
        axes = np.arange(1, 3 + 2 * halvings)
        nested = blocks.reshape(len(blocks), grid, grid, *[2] * (2 * halvings), -1)
        raster = nested.transpose(0, axes[-1] + 1, *axes[0::2], *axes[1::2])
        side = grid << halvings
        maps[name] = raster.reshape(len(blocks), -1, side, side)
    return maps


def write_embedding(path: Path, header: EmbeddingHeader, arrays: dict[str, np.ndarray]) -> None:
    """Write the arrays and the header, whole or not at all.

    Raises:
        OutputError: the file can't be written.
    """
    text = json.dumps({"schema": SCHEMA, **asdict(header)})
    contents = save(
        {k: np.ascontiguousarray(v) for k, v in arrays.items()}, metadata={"vkrt": text}
    )
    write_atomically(path, lambda file: file.write(contents))


def read_embedding(
    path: Path, model: str, fingerprint: str, shapes: dict[str, tuple[int, ...]]
) -> tuple[EmbeddingHeader, dict[str, np.ndarray]]:
    """Read what `write_embedding` wrote for the same model, weights and shapes.

    Raises:
        CheckpointError: the file is not there, damaged, or of something else.
    """
    try:
        if not path.is_file():
            raise CheckpointError(f"no embedding at {path}; emb.save(path) writes one")
        if path.stat().st_size > MAX_EMBEDDING_BYTES:
            raise CheckpointError(f"{path} is larger than any embedding")
        with safe_open(path, framework="numpy") as file:
            header = parse_header(path, file.metadata())
            check_origin(path, header, model, fingerprint)
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            if found != shapes:
                raise CheckpointError(
                    f"{path} holds arrays {shown(found)}, wanted {shapes}; encode the photo again"
                )
            check_dtypes(path, {name: file.get_slice(name).get_dtype() for name in shapes})
            arrays = {name: file.get_tensor(name) for name in shapes}
    except CheckpointError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is not a readable embedding file: {shown(error)}; encode the photo again"
        ) from None
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise CheckpointError(f"{path} has values that are no numbers; encode the photo again")
    return header, arrays


def check_dtypes(path: Path, dtypes: Mapping[str, str]) -> None:
    """Refuse arrays of another type than `write_embedding` writes."""
    wrong = sorted(name for name, dtype in dtypes.items() if dtype != "F32")
    if wrong:
        raise CheckpointError(
            f"{path} holds {wrong[0]} as {dtypes[wrong[0]]}, wanted F32; encode the photo again"
        )


def parse_header(path: Path, metadata: dict[str, str] | None) -> EmbeddingHeader:
    """Return the header that the metadata hold."""
    try:
        fields = parse_json((metadata or {})["vkrt"])
        schema = fields.pop("schema")
        header = EmbeddingHeader(size=read_size(fields.pop("size")), **fields)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"{path} is not an embedding that emb.save(path) wrote; encode the photo again"
        ) from None
    if schema != SCHEMA:
        raise CheckpointError(f"{path} has schema {shown(schema)}, this version reads {SCHEMA}")
    if not all(isinstance(text, str) for text in (header.model, header.fingerprint, header.key)):
        raise CheckpointError(f"{path} does not say what it was made of; encode the photo again")
    return header


def read_size(size: Any) -> tuple[int, int]:
    """Return the height and width that a header states.

    Raises:
        TypeError, ValueError: no photo has such.
    """
    height, width = size
    if type(height) is not int or type(width) is not int:
        raise TypeError
    if min(height, width) < 1 or max(height, width) > LONGEST_SIDE or height * width >= 2**31:
        raise ValueError
    return height, width


def check_origin(path: Path, header: EmbeddingHeader, model: str, fingerprint: str) -> None:
    """Refuse an embedding of another model or of other weights."""
    if header.model != model:
        raise CheckpointError(f"{path} was made by {shown(header.model)}, but this is {model}")
    if header.fingerprint != fingerprint:
        raise CheckpointError(
            f"{path} was made by {model} with other weights; encode the photo again"
        )

"""Scaled fp8 as ComfyUI writes it: which tensors are scales, and of what."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from pathlib import Path

from vkrt.errors import CheckpointError
from vkrt.weights.bounded_json import parse_json
from vkrt.weights.safety_limits import listed, shown
from vkrt.weights.tensor_index import Entry, Scale

__all__ = ["MARKER", "without_scales"]

# Beside "x.weight": what it is to be multiplied by, under the older and the newer name.
SCALE = re.compile(r"(?:^|\.)(?:scale_weight|weight_scale)$")
# What marks a file or a layer as scaled, and scales of activations, which run in full precision.
MARKER = re.compile(r"(?:^|\.)(?:scaled_fp8|scale_input|input_scale|comfy_quant)$")
QUANT = re.compile(r"(?:^|\.)comfy_quant$")
# Further scales of other formats, whose weights are packed.
OTHER = re.compile(r"(?:^|\.)(?:weight_scale_2|scale_weight_2|weight_zero_point|weight_zero)$")
FORMATS = ("float8_e4m3fn", "float8_e5m2")
MAX_NOTE_BYTES = 4096


def without_scales(
    path: Path, entries: Mapping[str, Entry]
) -> tuple[dict[str, Entry], dict[str, Scale]]:
    """Return tensors without what describes the scaling, and the scales of those that are scaled.

    Formula: weight = fp8 value * scale, with one scale for a tensor or one for each row.

    Raises:
        CheckpointError: the weights are of another quantized format, or a scale fits no weight.
    """
    other = [name for name in entries if OTHER.search(name)]
    other += [name for name, entry in entries.items() if QUANT.search(name) and not is_fp8(entry)]
    if other:
        raise CheckpointError(
            f"{shown(path, 1000)} holds quantized weights ({listed(other)}), of which only scaled "
            "fp8 is read: get the file in bf16, fp16 or fp8"
        )
    scales = {}
    for name, entry in entries.items():
        if SCALE.search(name):
            weight = f"{name.rpartition('.')[0]}.weight".removeprefix(".")
            scales[weight] = scale_of(path, name, entry, entries.get(weight))
    plain = {k: v for k, v in entries.items() if not (SCALE.search(k) or MARKER.search(k))}
    return plain, scales


def scale_of(path: Path, name: str, entry: Entry, weight: Entry | None) -> Scale:
    """Return the scale of a weight.

    Raises:
        CheckpointError: it does not fit.
    """
    count = prod(entry.shape)
    rows = weight.shape[0] if weight is not None and weight.shape else 1
    if weight is None or entry.dtype is None or count not in (1, rows):
        raise CheckpointError(
            f"{shown(path, 1000)} has {shown(name)} of {count} values, which scales no weight of "
            "it: get the file in bf16, fp16 or fp8"
        )
    return Scale(entry, max(1, prod(weight.shape) // max(1, rows)))


def is_fp8(entry: Entry) -> bool:
    """Tell by a layer's note whether its weight is scaled fp8; one without text is."""
    size = prod(entry.shape)
    if size > MAX_NOTE_BYTES:
        return False
    with entry.path.open("rb") as file:
        file.seek(entry.offset)
        text = file.read(size)
    if not text.strip(b"\0"):
        return True
    try:
        note = parse_json(text)
    except ValueError:
        return False
    return isinstance(note, dict) and note.get("format") in FORMATS

"""Rows of speed to try the benchmarks on."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from benchmarks.results import SpeedRow


def speed_row(**columns: Any) -> SpeedRow:
    """Return a row of tiny at its own size, with these columns and without figures."""
    empty = dict.fromkeys((field.name for field in fields(SpeedRow)), None)
    usual = {"model": "sam2.1-tiny", "image_size": 1024, "precision": "fp32", "samples": 300}
    return SpeedRow(**{**empty, **usual, "baseline": "vkrt-onnx", **columns})  # type: ignore[arg-type]

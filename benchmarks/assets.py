"""The files that all variants of one model load: the same weights in every form, made once."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Assets", "make_once"]


@dataclass(frozen=True)
class Assets:
    """Say where each form of one model's random weights belongs, made or not.

    A part is one folder that is made whole: "weights", "plain-fp32", "plain-int8", "masks",
    "bundle-fp32" and "bundle-int8" (benchmarks.exports makes them).

    Attributes:
        folder: of this model, these versions and these recipes.
        model: its name in vkrt's catalog.
        image_size: side of its square input, in pixels.
        photo_size: width and height of the photo, which a plain export has in its graph.
        sources: digest of vkrt's own sources; another one makes another bundle.
    """

    folder: Path
    model: str
    image_size: int
    photo_size: tuple[int, int]
    sources: str

    @property
    def checkpoint(self) -> Path:
        """Return the weights under their official names, as safetensors."""
        return self.part("weights") / "checkpoint.safetensors"

    @property
    def transformers(self) -> Path:
        """Return the folder of transformers' save_pretrained."""
        return self.part("weights") / "transformers"

    @property
    def masks(self) -> Path:
        """Return the graph from logits to masks of the photo's size."""
        return self.part("masks") / "masks.onnx"

    def encoder(self, precision: str) -> Path:
        """Return the graph from pixels to features, "fp32" or "int8"."""
        return self.part(f"plain-{precision}") / "encoder.onnx"

    def decoder(self, precision: str) -> Path:
        """Return the graph from features and a click to logits, "fp32" or "int8"."""
        return self.part(f"plain-{precision}") / "decoder.onnx"

    def bundle(self, precision: str) -> Path:
        """Return vkrt's own bundle, a folder, "fp32" or "int8"."""
        return self.part(f"bundle-{precision}") / f"{self.model}.vkrt"

    def part(self, name: str) -> Path:
        """Return the folder of a part."""
        if name == "masks":
            return self.folder / "masks-{}x{}".format(*self.photo_size)
        if name.startswith("bundle-"):
            return self.folder / f"{name}-{self.sources}"
        return self.folder / name


def make_once(folder: Path, make: Callable[[Path], object]) -> None:
    """Let `make` fill a folder unless it is there already: whole or not at all.

    Two processes may do so at the same time; the first to finish wins.
    """
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        make(temporary)
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

"""Export transformers' Sam2Model to ONNX as a user would: torch.onnx.export and its defaults."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Sam2Model

__all__ = ["export_masks", "export_model", "quantize"]

FEATURES = ["stride4", "stride8", "stride16"]
MASKS = 3


class Encoder(nn.Module):
    """Encode pixels (1, 3, S, S) into feature maps of strides 4, 8 and 16."""

    def __init__(self, model: Sam2Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.get_image_embeddings(pixels))


class Decoder(nn.Module):
    """Decode one click (1, 1, 1, 2) on the feature maps into logits (3, h, w) and scores (3,)."""

    def __init__(self, model: Sam2Model) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, stride4: Tensor, stride8: Tensor, stride16: Tensor, points: Tensor
    ) -> tuple[Tensor, Tensor]:
        labels = torch.ones(points.shape[:3], dtype=torch.int64)
        out = self.model(
            image_embeddings=[stride4, stride8, stride16], input_points=points, input_labels=labels
        )
        return out.pred_masks[0, 0], out.iou_scores[0, 0]


class Masks(nn.Module):
    """Enlarge logits (3, h, w) to a height and width and cut them at 0."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, logits: Tensor) -> Tensor:
        large = F.interpolate(logits[None], self.size, mode="bilinear", align_corners=False)
        return large[0] > 0


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back what the exporter and the quantizer tell of themselves."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


@torch.no_grad()
def export(
    module: nn.Module,
    inputs: Sequence[Tensor],
    path: Path,
    names: tuple[Sequence[str], Sequence[str]],
) -> None:
    """Write a module as ONNX for the shapes of its inputs; `names` are of inputs and outputs."""
    with quiet():
        torch.onnx.export(
            module.eval(),
            tuple(inputs),
            path,
            verbose=False,
            input_names=names[0],
            output_names=names[1],
        )


@torch.no_grad()
def export_model(model: Sam2Model, side: int, folder: Path) -> None:
    """Write encoder.onnx and decoder.onnx of a model, for square inputs and one click."""
    pixels = torch.zeros(1, 3, side, side)
    export(Encoder(model), [pixels], folder / "encoder.onnx", (["pixels"], FEATURES))
    features = model.get_image_embeddings(pixels)
    click = torch.full((1, 1, 1, 2), side / 2)
    names = ([*FEATURES, "points"], ["logits", "scores"])
    export(Decoder(model), [*features, click], folder / "decoder.onnx", names)


def export_masks(side: int, size: tuple[int, int], folder: Path) -> None:
    """Write masks.onnx for a model's square input and a photo's height and width."""
    logits = torch.zeros(MASKS, side // 4, side // 4)
    export(Masks(size), [logits], folder / "masks.onnx", (["logits"], ["masks"]))


def quantize(source: Path, folder: Path) -> None:
    """Write encoder.onnx and decoder.onnx of a plain export, dynamically quantized to int8."""
    from onnxruntime.quantization import quantize_dynamic

    with quiet():
        for name in ("encoder.onnx", "decoder.onnx"):
            quantize_dynamic(source / name, folder / name)

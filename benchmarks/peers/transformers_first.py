"""The first mask of transformers in a new process: `python -m benchmarks.peers.transformers_first`.

Imports nothing of vkrt. See TransformersEager for what stands in for its image processor.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import Sam2Model
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils.logging import disable_progress_bar

__all__ = ["main"]


@torch.inference_mode()
def main(folder: str, photo: str, x: str, y: str, out: str) -> None:
    """Write the best of the three masks of a click as a PNG, as `vkrt segment` does."""
    disable_progress_bar()
    model = Sam2Model.from_pretrained(folder).eval()
    side = model.config.vision_config.backbone_config.image_size[0]
    with Image.open(photo) as opened:
        pixels = torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1)[None]
    height, width = pixels.shape[2:]
    mean = torch.tensor(IMAGENET_DEFAULT_MEAN).view(3, 1, 1) * 255
    std = torch.tensor(IMAGENET_DEFAULT_STD).view(3, 1, 1) * 255
    small = F.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
    click = torch.tensor([[[[float(x) * side / width, float(y) * side / height]]]])
    found = model(
        pixel_values=small.float().sub_(mean).div_(std),
        input_points=click,
        input_labels=torch.ones(1, 1, 1, dtype=torch.int64),
    )
    best = int(found.iou_scores[0, 0].argmax())
    logits = found.pred_masks[0, :1, best : best + 1]
    mask = F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)[0, 0] > 0
    Image.fromarray(mask.numpy().astype(np.uint8) * 255).save(out)


if __name__ == "__main__":
    main(*sys.argv[1:])

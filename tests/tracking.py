"""What the tests of tracking share: engines on a fake and on the eager backend, and frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pico import NAME, PICO

from vkrt.backends.eager import EagerBackend
from vkrt.backends.fake import FakeBackend
from vkrt.engines.sam2_image import Segmenter
from vkrt.models.sam2.model import Sam2
from vkrt.models.sam2.stage_set import all_stages
from vkrt.options import Options

__all__ = ["CONFIG", "eager", "fake", "frames"]

CONFIG = PICO.config


def fake() -> tuple[Segmenter, FakeBackend]:
    """Return a segmenter whose backend computes nothing."""
    with torch.device("meta"):
        stages = all_stages(Sam2(CONFIG))
    backend = FakeBackend()
    return Segmenter(NAME, CONFIG, stages, backend), backend


@pytest.fixture(scope="module")
def eager() -> Segmenter:
    """Return one with random weights, in which objects are there."""
    torch.manual_seed(3)
    model = Sam2(CONFIG).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
        model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.add_(2)
    return Segmenter(NAME, CONFIG, all_stages(model), EagerBackend(Options()))


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """Return frames (12, 60, 80, 3) of a disc that moves over noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:60, :80]
    made = rng.integers(0, 60, (12, 60, 80, 3)).astype(np.uint8)
    for index, frame in enumerate(made):
        frame[(x - 20 - 3 * index) ** 2 + (y - 30) ** 2 < 150] = 230, 120, 40
    return made

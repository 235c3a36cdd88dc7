"""What several tests share."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

# Before anything imports torch: the same number of threads, and so the same sums, everywhere.
os.environ.setdefault("OMP_NUM_THREADS", "2")


@pytest.fixture
def photo() -> np.ndarray:
    """Return a photo (90, 120, 3) uint8: a bright disc on a gradient with some noise."""
    y, x = np.mgrid[:90, :120]
    noise = np.random.default_rng(0).integers(0, 20, (90, 120, 3))
    picture = noise + np.stack((x, y, x + y), axis=-1) // 2
    picture[(x - 70) ** 2 + (y - 40) ** 2 < 25**2] = (230, 180, 60)
    return picture.astype(np.uint8)


@pytest.fixture(scope="session")
def nano_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return random weights of sam2.1-nano, the smallest model, as safetensors."""
    import torch
    from safetensors.torch import save_file

    from vkrt import catalog
    from vkrt.models.sam2.model import Sam2

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "nano.safetensors"
    save_file(Sam2(catalog.find("sam2.1-nano").config).state_dict(), path)
    return path

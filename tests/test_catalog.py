"""The catalog: every official model, by any of its names."""

from __future__ import annotations

import pytest
import torch

from vkrt import catalog
from vkrt.errors import UnknownModelError
from vkrt.models.sam2.model import Sam2

# Parameters of the official checkpoints, in millions (model cards).
OFFICIAL = {"tiny": 38.9, "small": 46, "base-plus": 80.8, "large": 224.4}


@pytest.mark.parametrize("size", OFFICIAL)
@pytest.mark.parametrize("family", ["sam2", "sam2.1"])
def test_official_sizes(family: str, size: str) -> None:
    with torch.device("meta"):
        model = Sam2(catalog.find(f"{family}-{size}").config)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert millions == pytest.approx(OFFICIAL[size], rel=0.01)


@pytest.mark.parametrize("name", catalog.names())
def test_every_alias_finds_its_model(name: str) -> None:
    model = catalog.find(name)
    for alias in (name, name.upper(), name.replace("-", "_"), model.hub_id, model.checkpoint):
        if alias is not None:
            assert catalog.find(alias) == model


def test_the_message_names_what_is_close() -> None:
    with pytest.raises(UnknownModelError, match=r"sam2\.1-tiny"):
        catalog.find("sam2.1-tny")

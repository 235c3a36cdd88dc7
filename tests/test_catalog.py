"""The catalog: every official model, by any of its names."""

from __future__ import annotations

from pathlib import Path

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


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("sam2.1_hiera_l", "sam2.1-large"),
        ("sam2_configs/sam2_hiera_l.yaml", "sam2-large"),
        ("./configs/sam2.1/sam2.1_hiera_t.yaml", "sam2.1-tiny"),
        ("../sam2/sam2/configs/sam2.1/sam2.1_hiera_s.yaml", "sam2.1-small"),
        ("//home/user/sam2/sam2/configs/sam2.1/sam2.1_hiera_t.yaml", "sam2.1-tiny"),
        (Path("/models/sam2/sam2.1_hiera_b+.yaml"), "sam2.1-base-plus"),
        ("configs\\sam2.1\\sam2.1_hiera_l.yaml", "sam2.1-large"),
        ("C:\\sam2\\configs\\sam2\\SAM2_hiera_B+.YAML", "sam2-base-plus"),
        ("sam2.1/sam2.1_hiera_l", "sam2.1-large"),
        ("configs/samurai/sam2.1_hiera_b+.yaml", "sam2.1-base-plus"),
    ],
)
def test_a_config_may_lie_in_any_folder(path: str | Path, name: str) -> None:
    assert catalog.find(path).name == name


def test_weights_in_a_folder_are_no_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine/sam2.1_hiera_l").mkdir(parents=True)
    for name in ("mine/sam2.1_hiera_l", "mine/sam2.1_hiera_tiny.pt", "mine/sam2.1-tiny", "a.yaml"):
        with pytest.raises(UnknownModelError):
            catalog.find(name)

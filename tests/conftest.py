"""What several tests share."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# Before anything imports torch: processes that share the machine have one thread each.
IN_PARALLEL = "PYTEST_XDIST_WORKER" in os.environ
os.environ.setdefault("OMP_NUM_THREADS", "1" if IN_PARALLEL else "2")
# Most tests are of PyTorch's modules, also of the model whose bundle ships with vkrt.
os.environ["VKRT_BACKEND"] = "eager"
# Those of "auto" take that away; on a slow machine they may live for more than a minute.
os.environ["VKRT_EXPORT"] = "never"


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


@pytest.fixture
def pico(monkeypatch: pytest.MonkeyPatch) -> str:
    """Put the smallest model into the catalog and return its name."""
    from pico import NAME, PICO

    from vkrt import catalog

    monkeypatch.setitem(catalog._MODELS, NAME, PICO)
    return NAME


@pytest.fixture(scope="session")
def pico_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return random weights of the smallest model."""
    from pico import write_checkpoint

    path = tmp_path_factory.mktemp("weights") / "pico.safetensors"
    write_checkpoint(path)
    return path


@pytest.fixture(scope="session")
def pico_bundle(request: pytest.FixtureRequest, pico_checkpoint: Path) -> Path:
    """Return a bundle of the smallest model: the one real export of the quick tests.

    It takes half a minute, so it is kept between runs, as a user's is: until the sources change.
    """
    import torch
    from pico import NAME, PICO

    from vkrt import catalog
    from vkrt.export.cache import bundle_key, cached_bundle
    from vkrt.exporting import export_model

    key = bundle_key(None, None, f"torch-{torch.__version__}", [pico_checkpoint])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(catalog._MODELS, NAME, PICO)
        bundle = cached_bundle(
            request.config.cache.mkdir("bundles") / key,
            lambda folder: export_model(NAME, folder, pico_checkpoint, force=True),
        )
    return bundle.folder


@pytest.fixture(scope="session")
def sd35_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny "pipeline" of Stable Diffusion 3.5 and a "controlnet" for it."""
    pytest.importorskip("diffusers")
    from sd35_pipeline import tiny_controlled, tiny_pipeline

    folder = tmp_path_factory.mktemp("sd35")
    tiny_controlled(tiny_pipeline(folder), folder)
    return folder


@pytest.fixture
def copied(pico_bundle: Path, tmp_path: Path) -> Callable[[], Path]:
    """Return a function that gives a fresh copy of the bundle, free to be damaged."""

    def copy() -> Path:
        return shutil.copytree(pico_bundle, tmp_path / secrets.token_hex(4))

    return copy


@pytest.fixture
def host_attentions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Return the shapes of the queries that go to the host attention, which counts as native."""
    from vkrt.kernels import host_attention

    shapes: list[tuple[int, ...]] = []
    attend = host_attention.attend

    def noted(query: np.ndarray, *others: Any, **options: Any) -> np.ndarray:
        shapes.append(query.shape)
        return attend(query, *others, **options)

    monkeypatch.setattr(host_attention, "attend", noted)
    monkeypatch.setattr(host_attention, "IS_NATIVE", True)
    return shapes

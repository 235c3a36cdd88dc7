"""Make what the variants load, each part once, in the cache folder."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from safetensors.torch import save_file

from benchmarks.assets import Assets, make_once
from benchmarks.machine import ROOT, installed
from benchmarks.peers.plain_export import export_masks, export_model, quantize
from benchmarks.peers.transformers_sam2 import oracle_model, read_oracle, twin, write_oracle
from benchmarks.variants import AbsentError
from vkrt import catalog
from vkrt.options import cache_folder

__all__ = ["assets_of", "provide"]

# What the weights and the plain export depend on besides the model.
PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")
RECIPES = ("exports.py", "peers/plain_export.py", "peers/transformers_sam2.py")
DIGITS = 16


def assets_of(model: catalog.Model, photo: np.ndarray, cache: Path | None = None) -> Assets:
    """Return where the parts of a model lie for a photo (H, W, 3); makes none of them."""
    here = ROOT / "benchmarks"
    facts = [model.name, asdict(model.config), {name: installed(name) for name in PACKAGES}]
    texts = [json.dumps(facts, sort_keys=True), *((here / name).read_text() for name in RECIPES)]
    folder = (cache or cache_folder()) / "bench"
    height, width = photo.shape[:2]
    return Assets(
        folder=folder / f"{model.name}-{model.config.image_size}-{digest(texts)}",
        model=model.name,
        image_size=model.config.image_size,
        photo_size=(width, height),
        sources=digest(own_sources()),
    )


def digest(texts: Iterable[str]) -> str:
    """Return a short digest of texts."""
    total = hashlib.sha256()
    for text in texts:
        total.update(hashlib.sha256(text.encode()).digest())
    return total.hexdigest()[:DIGITS]


def own_sources() -> list[str]:
    """Return the text of every module that a bundle's content may depend on."""
    folders = [ROOT / name for name in ("vkrt", "kernels", "export")]
    return [p.read_text() for folder in folders for p in sorted(folder.rglob("*.py"))]


def provide(assets: Assets, parts: Iterable[str]) -> None:
    """Make the parts that are not there yet, in the order given.

    Raises:
        AbsentError: vkrt can't export a bundle here.
    """
    for part in parts:
        make_once(assets.part(part), partial(MAKERS[part], assets))


def make_weights(assets: Assets, folder: Path) -> None:
    """Write the random weights as a checkpoint and as transformers' folder."""
    config = catalog.find(assets.model, assets.image_size).config
    oracle = oracle_model(config)
    write_oracle(oracle, folder / assets.transformers.name)
    state = twin(oracle, config).state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, folder / assets.checkpoint.name)


def make_plain(assets: Assets, folder: Path) -> None:
    """Write the plain export of the shared weights."""
    provide(assets, ["weights"])
    export_model(read_oracle(assets.transformers), assets.image_size, folder)


def make_plain_int8(assets: Assets, folder: Path) -> None:
    """Write the plain export, quantized."""
    quantize(assets.part("plain-fp32"), folder)


def make_masks(assets: Assets, folder: Path) -> None:
    """Write the graph that gives masks of the photo's size."""
    width, height = assets.photo_size
    export_masks(assets.image_size, (height, width), folder)


def make_bundle(assets: Assets, folder: Path, precision: str) -> None:
    """Let `vkrt export` write a bundle, as a user does.

    Raises:
        AbsentError: it did not.
    """
    command = [sys.executable, "-m", "vkrt.cli", "export", assets.model]
    command += ["--checkpoint", str(assets.checkpoint), "--precision", precision]
    command += ["--out", str(folder / assets.bundle(precision).name)]
    if assets.image_size != catalog.find(assets.model).config.image_size:
        command += ["--image-size", str(assets.image_size)]
    if precision == "int8":
        # The scenes that the quality gate asks for mean nothing to random weights.
        command += ["--allow-loss"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise AbsentError(f"vkrt export --precision {precision} failed: {lines[-1].strip('│ ')}")


MAKERS: dict[str, Callable[[Assets, Path], None]] = {
    "weights": make_weights,
    "plain-fp32": make_plain,
    "plain-int8": make_plain_int8,
    "masks": make_masks,
    "bundle-fp32": partial(make_bundle, precision="fp32"),
    "bundle-int8": partial(make_bundle, precision="int8"),
}

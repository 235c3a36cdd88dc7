"""vkrt.load: names, paths, options, and one clear line for what can't be."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import edit, write_toy

import vkrt
from vkrt import backends, catalog
from vkrt import loading_sam2 as loading
from vkrt.loading_sam2 import fingerprint, from_weights
from vkrt.models.sam2.model import Sam2


def test_a_path_alone_is_recognised(nano_checkpoint: Path, photo: np.ndarray) -> None:
    sam = vkrt.load(nano_checkpoint, image_size=64)
    assert (sam.name, sam.backend, sam.device) == ("sam2.1-nano", "eager", "cpu")
    assert sam.encode(photo).predict(points=[[70, 40]]).masks.shape == (3, 90, 120)


def test_any_image_size(nano_checkpoint: Path, photo: np.ndarray) -> None:
    for size in (32, 96, 160):
        sam = vkrt.load("sam2.1-nano", nano_checkpoint, image_size=size)
        out = sam.encode(photo).predict(box=[10, 10, 90, 80], multimask=False)
        assert out.logits.shape == (1, size // 4, size // 4)


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"model": "sam3-huge"}, vkrt.UnknownModelError, "did you mean"),
        ({"model": "sam2.1-nano", "image_size": 100}, vkrt.UnknownModelError, "multiple of 32"),
        ({"model": "sam2.1-nano", "backend": "abacus"}, vkrt.BackendError, "backend must be one"),
        ({"model": "sam2.1-nano", "precision": "int3"}, vkrt.BackendError, "precision must be"),
        ({"model": "sam2.1-nano", "threads": 0}, vkrt.BackendError, "threads"),
        ({"model": "sam2.1-nano", "device": "warp:9"}, vkrt.BackendError, "device 'warp:9'"),
        ({"model": "sam2.1-nano", "checkpoint": "nowhere.pt"}, vkrt.CheckpointError, "nowhere.pt"),
        ({"model": "sam2.1-tiny"}, vkrt.DownloadError, "vkrt pull"),
    ],
)
def test_refused_in_one_line(
    arguments: dict[str, object],
    kind: type[Exception],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VKRT_CACHE", str(tmp_path))
    with pytest.raises(kind, match=words) as caught:
        vkrt.load(**arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, vkrt.VkrtError)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_told(nano_checkpoint: Path) -> None:
    with pytest.raises(vkrt.BackendError, match="'cuda' is not usable"):
        vkrt.load("sam2.1-nano", nano_checkpoint, device="cuda")


def test_another_size_is_told(nano_checkpoint: Path) -> None:
    with pytest.raises(vkrt.CheckpointError, match=r"sam2\.1-nano.*sam2\.1-tiny"):
        vkrt.load("sam2.1-tiny", nano_checkpoint)


def test_other_weights_have_another_fingerprint() -> None:
    model = Sam2(catalog.find("sam2.1-nano").config)
    before = fingerprint(model)
    assert fingerprint(model) == before
    with torch.no_grad():
        model.no_mem_embed[0, 0, 0] += 1
    assert fingerprint(model) != before


def test_threads_are_taken(nano_checkpoint: Path) -> None:
    before = torch.get_num_threads()
    vkrt.load("sam2.1-nano", nano_checkpoint, threads=1)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)


# Bundles.


def test_a_bundle_loads_by_itself_or_as_a_checkpoint(pico: str, pico_bundle: Path) -> None:
    for arguments in ((pico_bundle,), (str(pico_bundle),), (pico, pico_bundle)):
        for backend in ("auto", "onnx"):
            sam = vkrt.load(*arguments, backend=backend, image_size=64, precision="fp32")
            assert (sam.name, sam.backend, sam.config.image_size) == (pico, "onnx", 64)


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"backend": "eager"}, vkrt.BackendError, "which eager can't run"),
        ({"image_size": 96}, vkrt.CheckpointError, "--image-size 96"),
        ({"precision": "fp16"}, vkrt.BackendError, "holds fp32 weights, not fp16"),
        ({"device": "warp:9"}, vkrt.BackendError, "device 'warp:9'"),
        ({"model": "sam2.1-nano"}, vkrt.CheckpointError, "but sam2.1-nano was asked for"),
    ],
)
def test_a_bundle_that_is_not_what_is_asked_for(
    pico: str, pico_bundle: Path, arguments: dict[str, Any], kind: type[Exception], words: str
) -> None:
    given = {"model": pico, "checkpoint": pico_bundle, **arguments}
    with pytest.raises(kind, match=words) as caught:
        vkrt.load(**given)
    assert "\n" not in str(caught.value)


def test_int8_is_no_precision_of_every_backend(pico: str, copied: Callable[[], Path]) -> None:
    folder = copied()
    edit(folder, lambda content: content.update(precision="int8"))
    with pytest.raises(vkrt.BackendError, match="int8 weights, which the openvino backend can't"):
        vkrt.load(pico, folder, backend="openvino")
    assert vkrt.load(pico, folder, backend="onnx").backend == "onnx"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["stages"].pop("mask_refiner"), "no stage 'mask_refiner'"),
        (lambda c: c["preprocessing"].update(mean=[0.5] * 3), "other preprocessing"),
        (lambda c: c.update(model="sam9"), "unknown model"),
        (lambda c: c.update(image_size=100), "multiple of 32"),
        (lambda c: c.update(schema=99), "update vkrt"),
    ],
)
def test_a_bundle_of_another_kind(
    pico: str, copied: Callable[[], Path], change: Callable[[Any], Any], words: str
) -> None:
    manifest = copied() / "manifest.json"
    content = json.loads(manifest.read_text())
    change(content)
    manifest.write_text(json.dumps(content))
    with pytest.raises(vkrt.VkrtError, match=words) as caught:
        vkrt.load(manifest.parent)
    assert "\n" not in str(caught.value)


# The bundle that ships with a model.


class Loaded:
    """Stand for a model that was made of a bundle, or of "eager" weights."""

    def __init__(self, made_of: Any) -> None:
        self.made_of = made_of


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pico_checkpoint: Path) -> Path:
    """Let a bundle in fp16 ship with the smallest model; a load tells only what it would take."""
    from pico import NAME, PICO

    folder = tmp_path / "pico.vkrt"
    write_toy(folder)
    edit(folder, lambda content: content.update(model=NAME, image_size=64, precision="fp16"))
    model = replace(PICO, packaged=pico_checkpoint, packaged_bundle=folder)
    monkeypatch.setitem(catalog._MODELS, NAME, model)
    monkeypatch.setattr(loading, "from_bundle", lambda bundle, options: Loaded(bundle))
    monkeypatch.setattr(loading.Exportable, "find", lambda _: "exported")
    monkeypatch.setattr(loading, "from_weights", lambda *_: Loaded("eager"))
    monkeypatch.delenv("VKRT_BACKEND")
    monkeypatch.setenv("VKRT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(backends, "_GPU_FILES", ())
    return folder


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({}, "shipped"),
        ({"backend": "onnx"}, "shipped"),
        ({"precision": "fp16"}, "shipped"),
        ({"image_size": 64, "device": "cpu"}, "shipped"),
        ({"backend": "onnx", "precision": "fp16", "device": "cuda:0"}, "shipped"),
        ({"image_size": 96}, "exported"),
        ({"precision": "fp32"}, "exported"),
        ({"backend": "onnx", "image_size": 96, "precision": "fp16"}, "exported"),
        ({"checkpoint": "weights"}, "exported"),
        ({"precision": "bf16"}, "eager"),
        ({"backend": "eager"}, "eager"),
        ({"device": "cuda:0"}, "eager"),
    ],
)
def test_when_the_shipped_bundle_is_taken(
    shipped: Path, pico_checkpoint: Path, arguments: dict[str, Any], wanted: str
) -> None:
    if "checkpoint" in arguments:
        arguments = {**arguments, "checkpoint": pico_checkpoint}
    found: Any = vkrt.load("SAM2.1_pico", **arguments).made_of
    assert (found.folder == shipped) if wanted == "shipped" else (found == wanted)


def test_the_environment_keeps_the_shipped_bundle_out(
    shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VKRT_BACKEND", "eager")
    assert vkrt.load("sam2.1-pico").made_of == "eager"


def test_an_install_without_the_shipped_bundle(shipped: Path) -> None:
    (shipped / "manifest.json").unlink()
    assert vkrt.load("sam2.1-pico").made_of == "exported"


@pytest.mark.parametrize("file", ["manifest.json", "product.onnx"])
def test_a_damaged_shipped_bundle(shipped: Path, file: str) -> None:
    (shipped / file).write_bytes(b"{")
    for arguments in ({}, {"backend": "onnx"}):
        with pytest.raises(vkrt.CheckpointError, match=f"{file}.*reinstall") as caught:
            vkrt.load("sam2.1-pico", **arguments)
        assert "\n" not in str(caught.value)
    assert vkrt.load("sam2.1-pico", backend="eager").made_of == "eager"


@pytest.mark.parametrize(
    ("absent", "arguments", "words"),
    [
        ({"torch"}, {"image_size": 96}, r"not exported yet, .* torch: .*vkrt\[torch,cpu\]"),
        ({"torch"}, {"precision": "fp32"}, r"not exported yet, .* torch: .*vkrt\[torch,cpu\]"),
        ({"torch"}, {"precision": "bf16"}, r"vkrt\[torch\]"),
        ({"torch", "onnxruntime", "openvino"}, {}, r"vkrt\[torch\].*vkrt\[cpu\]"),
        ({"torch", "onnxruntime", "openvino"}, {"backend": "onnx"}, r"vkrt\[cpu\]"),
    ],
)
def test_what_is_missing_is_named(
    shipped: Path,
    monkeypatch: pytest.MonkeyPatch,
    absent: set[str],
    arguments: dict[str, Any],
    words: str,
) -> None:
    monkeypatch.setattr(loading.Exportable, "find", lambda _: None)
    monkeypatch.setattr(loading, "from_weights", from_weights)
    real = backends.find_spec
    monkeypatch.setattr(backends, "find_spec", lambda name: None if name in absent else real(name))
    with pytest.raises(vkrt.BackendError, match=words) as caught:
        vkrt.load("sam2.1-pico", **arguments)
    assert "\n" not in str(caught.value)


def test_a_component_is_left_out_by_wish(sd35_folder: Path) -> None:
    folder = sd35_folder / "pipeline"
    small = {"width": 64, "height": 64, "steps": 1, "seed": 1, "guidance": 1.0}
    pictures = []
    for encoders in (None, {"t5": None}, {"text_encoder_3": None}):
        with vkrt.load(folder, encoders=encoders) as generator:
            pictures.append(np.asarray(generator.generate("a cat", **small)[0]))
    assert np.array_equal(pictures[1], pictures[2])
    assert not np.array_equal(pictures[0], pictures[1])
    with pytest.raises(vkrt.CheckpointError, match="encoders' t5 can't be the path ''"):
        vkrt.load(folder, encoders={"t5": ""})

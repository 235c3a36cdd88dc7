"""Backends are interchangeable: the same call, the same shapes; the fake one checks both."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vkrt import backends, catalog
from vkrt.backends.base import Backend
from vkrt.backends.eager import EagerBackend
from vkrt.backends.fake import FakeBackend
from vkrt.backends.onnx import OnnxBackend
from vkrt.errors import BackendError
from vkrt.models.sam2.model import Sam2
from vkrt.models.sam2.stages import image_stages
from vkrt.options import Options
from vkrt.stage import Port, Stage

CONFIG = catalog.find("sam2.1-nano", 64).config


@pytest.fixture(params=["eager", "fake"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return EagerBackend(Options()) if request.param == "eager" else FakeBackend()


def inputs(stage: Stage, **sizes: int) -> list[np.ndarray]:
    """Return an array of zeros for each input port."""
    return [
        np.zeros([sizes[d] if isinstance(d, str) else d for d in port.shape], port.dtype)
        for port in stage.inputs
    ]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("image_encoder", {"images": 2}),
        ("mask_decoder", {"images": 1, "prompts": 3, "points": 4}),
        ("mask_decoder", {"images": 3, "prompts": 3, "points": 0}),
    ],
)
def test_a_stage_keeps_to_its_ports(backend: Backend, name: str, sizes: dict[str, int]) -> None:
    stage = image_stages(Sam2(CONFIG))[name]
    outputs = backend.prepare(stage)(*map(backend.from_host, inputs(stage, **sizes)))
    assert len(outputs) == len(stage.outputs)
    for port, output in zip(stage.outputs, outputs, strict=True):
        array = backend.to_host(output)
        wanted = tuple(sizes[d] if isinstance(d, str) else d for d in port.shape)
        assert array.shape == wanted, port.name
        assert str(array.dtype) == port.dtype


def test_arrays_go_there_and_back(backend: Backend) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(backend.to_host(backend.from_host(array)), array)
    assert tuple(backend.empty((2, 5)).shape) == (2, 5)
    backend.close()


def test_the_fake_backend_checks_shapes() -> None:
    stage = Stage("add", None, (Port("a", ("n", 2)), Port("b", ("n",))), (Port("c", ("n",)),))
    program = FakeBackend().prepare(stage)
    assert program(np.zeros((3, 2), np.float32), np.zeros(3, np.float32))[0].shape == (3,)
    with pytest.raises(ValueError, match="b has shape"):
        program(np.zeros((3, 2), np.float32), np.zeros(4, np.float32))
    with pytest.raises(ValueError, match="not float32"):
        program(np.zeros((3, 2)), np.zeros(3, np.float32))


def test_auto_takes_the_first_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [c.name for c in backends.candidates("cpu")] == ["onnx", "eager", "openvino"]
    assert [c.name for c in backends.candidates("cuda")] == ["eager", "onnx", "openvino"]
    assert backends.choose("auto", "cpu").name == "onnx"
    assert isinstance(backends.create(Options(device="cpu")), OnnxBackend)
    assert isinstance(backends.create(Options(backend="eager")), EagerBackend)
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    with pytest.raises(
        BackendError, match=r"torch is not installed, run pip install 'vkrt\[torch\]'"
    ):
        backends.choose("auto")


@pytest.mark.parametrize(
    ("absent", "first", "reason"),
    [
        ("onnxscript", "eager", "for bundles; exporting one needs onnxscript"),
        ("torch", "onnx", "exporting one needs torch"),
        ("onnxruntime", "eager", "onnxruntime is not installed"),
    ],
)
def test_auto_without_a_package(
    monkeypatch: pytest.MonkeyPatch, absent: str, first: str, reason: str
) -> None:
    real = backends.find_spec
    monkeypatch.setattr(backends, "find_spec", lambda name: None if name == absent else real(name))
    assert backends.choose("auto", "cpu").name == first
    (onnx,) = (c for c in backends.candidates("cpu") if c.name == "onnx")
    assert reason in onnx.reason
    assert onnx.install == ("pip install 'vkrt[cpu]'" if absent == "onnxruntime" else "")


def test_who_runs_bundles(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("eager", "onnx", "openvino", "auto", "warp")
    assert [backends.runs_bundles(name) for name in names] == [False, True, True, False, False]
    assert [backends.bundle_runner(name) for name in ("auto", "onnx", "openvino")] == [
        "onnx",
        "onnx",
        "openvino",
    ]
    real = backends.find_spec
    monkeypatch.setattr(
        backends, "find_spec", lambda name: None if name == "onnxruntime" else real(name)
    )
    assert backends.bundle_runner("auto") == "openvino"
    assert backends.may_use_bundle(Options(device="cpu"))


def test_precisions_of_a_bundle() -> None:
    assert backends.may_use_bundle(Options(backend="openvino", precision="fp16"))
    for backend, precision in (("openvino", "int8"), ("openvino", "bf16"), ("onnx", "bf16")):
        with pytest.raises(BackendError, match=f"the {backend} backend has no {precision}; take"):
            backends.may_use_bundle(Options(backend=backend, precision=precision))


def test_what_forbids_an_import_is_taken_as_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(backends, "find_spec", forbid)
    assert not any(candidate.usable for candidate in backends.candidates())


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_precision_casts_the_module_and_not_the_labels(precision: str, dtype: torch.dtype) -> None:
    class Probe(torch.nn.Module):
        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return x, labels

    stage = Stage("probe", Probe(), (Port("x", ("n",)), Port("labels", ("n",), "int32")), ())
    program = EagerBackend(Options(precision=precision)).prepare(stage)
    x, labels = program(torch.zeros(2), torch.zeros(2, dtype=torch.int32))
    assert (x.dtype, labels.dtype) == (dtype, torch.int32)

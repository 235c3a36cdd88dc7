"""What the onnx backend has of its own: threads, memory, GPUs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from toys import graph_model, product_stage

import vkrt
from vkrt import options as options_module
from vkrt.backends.onnx import CPU, CUDA, TENSORRT, OnnxBackend, OnnxProgram, pick_providers
from vkrt.options import Options, usable_cores

# Threads and memory.


@pytest.mark.parametrize(("threads", "wanted"), [(3, 3), (None, usable_cores())])
def test_threads_are_explicit(tmp_path: Path, threads: int | None, wanted: int) -> None:
    program = OnnxBackend(Options(threads=threads)).prepare(product_stage(tmp_path))
    assert isinstance(program, OnnxProgram) and program._session is not None
    settings = program._session.get_session_options()
    assert (settings.intra_op_num_threads, settings.inter_op_num_threads) == (wanted, 1)
    assert not settings.enable_mem_pattern


BOUNDED = """
import sys
import numpy as np
from pathlib import Path
from vkrt.backends import onnx
from vkrt.errors import BackendError
from vkrt.options import Options
from vkrt.stage import Port, Stage

onnx.usable_memory = lambda: 2**26
stage = Stage("s", Path(sys.argv[1]), (Port("x", ("n", 4)),), (Port("y", ("n", 3)),))
program = onnx.OnnxBackend(Options(threads=1)).prepare(stage)
assert program(np.ones((1000, 4), np.float32))[0].shape == (1000, 3)
try:
    program(np.ones((10_000_000, 4), np.float32))
except BackendError as error:
    print(error)
print(program(np.ones((10, 4), np.float32))[0].sum())
"""


def test_a_run_takes_no_more_than_there_is(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Softmax", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "v"], ["y"]),
    ]
    weights = [
        numpy_helper.from_array(np.ones(s, np.float32), n)
        for n, s in (("w", (4, 3)), ("v", (3, 3)))
    ]
    path = tmp_path / "m.onnx"
    path.write_bytes(graph_model(nodes, weights).SerializeToString())
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED, str(path)], capture_output=True, text=True, check=True
    )
    told, after = done.stdout.splitlines()
    assert f"failed to run {path}" in told and "too little memory" in told
    assert float(after) == 30.0


def test_a_quota_bounds_the_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def at(text: str | None) -> int:
        (tmp_path / "cpu.max").unlink(missing_ok=True)
        if text is not None:
            (tmp_path / "cpu.max").write_text(text)
        return usable_cores()

    monkeypatch.setattr(options_module, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(options_module.os, "sched_getaffinity", lambda _: set(range(8)))
    assert at(None) == at("max 100000\n") == at("900000 100000\n") == 8
    assert at("250000 100000\n") == 3 and at("1000 100000\n") == 1


GROWING = """
import sys
import numpy as np
from pathlib import Path
from vkrt.backends.onnx import OnnxBackend
from vkrt.options import Options
from vkrt.stage import Port, Stage

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

stage = Stage("s", Path(sys.argv[1]), (Port("x", ("n", 4)),), (Port("y", ("n", 4)),))
program = OnnxBackend(Options(threads=1)).prepare(stage)
before = resident()
for rows in [*range(200_000, 2_000_001, 200_000), 200_000, 200_000]:
    program(np.ones((rows, 4), np.float32))
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_growing_sizes_do_not_pile_up(tmp_path: Path) -> None:
    """Three arrays live at once, 32 MB each at the largest: all sizes together would be 5 times."""
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    names = ["x", "a", "b", "y"]
    nodes = [
        node
        for i in range(3)
        for node in (
            helper.make_node("MatMul", [names[i], "w"], [f"m{i}"]),
            helper.make_node("Softmax", [f"m{i}"], [names[i + 1]]),
        )
    ]
    path = tmp_path / "chain.onnx"
    path.write_bytes(graph_model(nodes, [weight], width=4).SerializeToString())
    command = [sys.executable, "-c", GROWING, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 3 * 32_000_000


# Devices.


def test_devices_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr("vkrt.backends.onnx.find_library", lambda name: None)
    assert [name for name, _ in pick_providers("cpu", tmp_path)] == [CPU]
    for device, index in (("auto", 0), ("cuda", 0), ("cuda:2", 2)):
        (first, settings), (last, _) = pick_providers(device, tmp_path)
        assert (first, settings["device_id"], last) == (CUDA, index, CPU)
    monkeypatch.setattr("vkrt.backends.onnx.find_library", lambda name: f"lib{name}.so")
    assert [name for name, _ in pick_providers("cuda", tmp_path)] == [TENSORRT, CUDA, CPU]


def test_a_gpu_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CPU])
    with pytest.warns(RuntimeWarning, match=r"runs on the CPU, not on the GPU") as caught:
        assert OnnxBackend(Options(device="cuda")).device == "cpu"
    assert len(caught) == 1
    assert OnnxBackend(Options(device="auto")).device == "cpu"


@pytest.mark.skipif(CUDA in ort.get_available_providers(), reason="the GPU provider may start")
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_gpu_provider_that_does_not_start_is_told_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, CPU])
    backend, stage = OnnxBackend(Options(device="auto")), product_stage(tmp_path)
    assert backend.device == "cuda:0"
    with pytest.warns(RuntimeWarning, match="did not start"):
        program = backend.prepare(stage)
    assert backend.device == "cpu"
    backend.prepare(stage)
    assert program(np.ones((2, 4), np.float32))[0].shape == (2, 3)


# A whole model.


def test_embeddings_are_of_the_same_kind(
    pico: str, pico_bundle: Path, pico_checkpoint: Path, photo: np.ndarray, tmp_path: Path
) -> None:
    ours, eager = vkrt.load(pico_bundle), vkrt.load(pico, pico_checkpoint)
    assert (ours.backend, eager.backend) == ("onnx", "eager")
    eager.encode(photo).save(tmp_path / "e")
    found = ours.load_embedding(tmp_path / "e").predict(points=[[30, 30]]).logits
    wanted = ours.encode(photo).predict(points=[[30, 30]]).logits
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_damaged_bundle_runs_nothing(
    pico: str, copied: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(*_: object) -> None:
        raise AssertionError("something ran")

    monkeypatch.setattr(OnnxBackend, "prepare", prepare)
    folder = copied()
    content = bytearray((folder / "mask_decoder.onnx").read_bytes())
    content[len(content) // 2] ^= 4
    (folder / "mask_decoder.onnx").write_bytes(content)
    with pytest.raises(vkrt.CheckpointError, match=r"mask_decoder\.onnx was changed"):
        vkrt.load(folder)

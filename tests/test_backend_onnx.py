"""The onnx backend: the same call and results as PyTorch, without importing it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from toys import WEIGHT, graph_model, product_stage

import vkrt
from vkrt import options as options_module
from vkrt.backends.onnx import CPU, CUDA, TENSORRT, OnnxBackend, OnnxProgram, pick_providers
from vkrt.errors import BackendError
from vkrt.options import Options, usable_cores
from vkrt.stage import Port, Stage

TESTS = Path(__file__).resolve().parent


@pytest.fixture
def product(tmp_path: Path) -> Stage:
    """Return a stage that gives x @ WEIGHT for x of n rows."""
    return product_stage(tmp_path)


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 4)).astype(np.float32)


# Programs.


@pytest.mark.parametrize("count", [1, 5, 0])
def test_any_size(product: Stage, count: int) -> None:
    x = rows(count)
    (y,) = OnnxBackend(Options()).prepare(product)(x)
    assert y.shape == (count, 3) and y.dtype == np.float32
    np.testing.assert_allclose(y, x @ WEIGHT, rtol=1e-6)


def test_outputs_outlive_the_next_call(product: Stage) -> None:
    program = OnnxBackend(Options()).prepare(product)
    first = program(rows(3))[0]
    kept = first.copy()
    for count in (3, 3, 40):
        program(rows(count) + 1)
    np.testing.assert_array_equal(first, kept)
    assert not np.shares_memory(first, program(rows(3))[0])


def test_inputs_of_other_layouts_and_dtypes(product: Stage) -> None:
    program = OnnxBackend(Options()).prepare(product)
    x = rows(6)
    wanted = x[::2] @ WEIGHT
    for given in (x[::2], np.asfortranarray(x[::2]), x[::2].astype(np.float64)):
        np.testing.assert_allclose(program(given)[0], wanted, rtol=1e-6)
    np.testing.assert_array_equal(x, rows(6))


def test_a_shape_that_does_not_fit(product: Stage) -> None:
    program = OnnxBackend(Options()).prepare(product)
    with pytest.raises(ValueError, match="x has shape"):
        program(np.zeros((2, 5), np.float32))
    with pytest.raises(ValueError, match="x has shape"):
        program(np.zeros(4, np.float32))
    with pytest.raises(ValueError, match="argument"):
        program(rows(1), rows(1))


def test_ports_of_another_file(product: Stage) -> None:
    other = Stage("other", product.module, (Port("z", ("n", 4)),), product.outputs)
    with pytest.raises(BackendError, match="has x where other has z"):
        OnnxBackend(Options()).prepare(other)


def test_a_file_that_does_not_load(product: Stage) -> None:
    product.module.write_bytes(b"\x3a\x03\x0a\x01x")
    with pytest.raises(BackendError, match="can't run") as caught:
        OnnxBackend(Options()).prepare(product)
    assert "\n" not in str(caught.value)


def test_a_closed_backend_says_so(product: Stage) -> None:
    backend = OnnxBackend(Options())
    program = backend.prepare(product)
    backend.close()
    with pytest.raises(BackendError, match="was closed"):
        program(rows(1))


def test_arrays_go_there_and_back() -> None:
    backend = OnnxBackend(Options())
    array = np.arange(6, dtype=np.float32)
    assert backend.to_host(backend.from_host(array)) is array
    assert backend.empty((2, 5), "int32").dtype == np.int32 and backend.device == "cpu"


# Threads and memory.


@pytest.mark.parametrize(("threads", "wanted"), [(3, 3), (None, usable_cores())])
def test_threads_are_explicit(product: Stage, threads: int | None, wanted: int) -> None:
    program = OnnxBackend(Options(threads=threads)).prepare(product)
    assert isinstance(program, OnnxProgram) and program._session is not None
    settings = program._session.get_session_options()
    assert (settings.intra_op_num_threads, settings.inter_op_num_threads) == (wanted, 1)
    assert not settings.enable_mem_pattern


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


@pytest.mark.parametrize("device", ["warp:9", "cuda:x", "cuda:-1", "gpu", ""])
def test_an_unknown_device(device: str) -> None:
    with pytest.raises(BackendError, match="use cpu, cuda or cuda:N"):
        OnnxBackend(Options(device=device))


def test_a_gpu_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CPU])
    with pytest.warns(RuntimeWarning, match=r"runs on the CPU, not on the GPU") as caught:
        assert OnnxBackend(Options(device="cuda")).device == "cpu"
    assert len(caught) == 1
    assert OnnxBackend(Options(device="auto")).device == "cpu"


@pytest.mark.skipif(CUDA in ort.get_available_providers(), reason="the GPU provider may start")
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_gpu_provider_that_does_not_start_is_told_once(
    monkeypatch: pytest.MonkeyPatch, product: Stage
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, CPU])
    backend = OnnxBackend(Options(device="auto"))
    assert backend.device == "cuda:0"
    with pytest.warns(RuntimeWarning, match="did not start"):
        program = backend.prepare(product)
    assert backend.device == "cpu"
    backend.prepare(product)
    assert program(rows(2))[0].shape == (2, 3)


# A whole model, against PyTorch.


@pytest.fixture(scope="module")
def prompts() -> list[dict[str, object]]:
    """Return prompts of every kind, for the photo of the tests."""
    earlier = np.random.default_rng(3).standard_normal((16, 16)).astype(np.float32)
    return [
        {"points": [[70, 40]]},
        {"points": [[70, 40], [5, 80]], "labels": [1, 0], "multimask": False},
        {"box": [45, 15, 95, 65], "points": [[70, 40]]},
        {"box": [[45, 15, 95, 65], [0, 0, 30, 30], [5, 5, 100, 80]], "multimask": False},
        {"mask": earlier, "multimask": False},
        {"mask": earlier, "points": [[70, 40]]},
    ]


def test_a_bundle_answers_as_pytorch_does(
    pico: str,
    pico_bundle: Path,
    pico_checkpoint: Path,
    photo: np.ndarray,
    prompts: list[dict[str, object]],
) -> None:
    ours, eager = vkrt.load(pico_bundle), vkrt.load(pico, pico_checkpoint)
    assert (ours.name, ours.backend, ours.device) == (pico, "onnx", "cpu")
    assert (eager.backend, eager.config) == ("eager", ours.config)
    for picture in (photo, photo[:, ::-1].copy()):
        one, other = ours.encode(picture), eager.encode(picture)
        for prompt in prompts:
            found, wanted = one.predict(**prompt), other.predict(**prompt)
            np.testing.assert_allclose(found.logits, wanted.logits, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-5)
            assert (found.masks == wanted.masks).mean() > 0.999


def test_a_batch_of_photos(pico: str, pico_bundle: Path, photo: np.ndarray) -> None:
    pictures = [photo, photo[::-1].copy(), photo[:, ::-1].copy()]
    together, alone = vkrt.load(pico_bundle), vkrt.load(pico_bundle)
    for embedding, picture in zip(together.encode(pictures), pictures, strict=True):
        found = embedding.predict(points=[[30, 30]]).logits
        wanted = alone.encode(picture).predict(points=[[30, 30]]).logits
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_embeddings_are_of_the_same_kind(
    pico: str, pico_bundle: Path, pico_checkpoint: Path, photo: np.ndarray, tmp_path: Path
) -> None:
    ours, eager = vkrt.load(pico_bundle), vkrt.load(pico, pico_checkpoint)
    eager.encode(photo).save(tmp_path / "e")
    found = ours.load_embedding(tmp_path / "e").predict(points=[[30, 30]]).logits
    wanted = ours.encode(photo).predict(points=[[30, 30]]).logits
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


# What must not be imported is refused, so that whoever imports it fails.
TORCH_FREE = """
import sys

class Ban:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BANNED:
            raise ImportError(f"{name} must not be imported")

BANNED = {"torch", "onnx", "onnxscript", "onnx_ir", "transformers", "scipy", "filelock"}
sys.meta_path.insert(0, Ban())
sys.path.insert(0, sys.argv[3])
import numpy as np
from pico import NAME, PICO
from vkrt import catalog
catalog._MODELS[NAME] = PICO
import vkrt
sam = vkrt.load(sys.argv[1])
photo = np.load(sys.argv[2])
embedding = sam.encode(photo)
result = embedding.predict(points=[[70, 40]])
again = embedding.predict(points=[[70, 40]], mask=result.logits[0])
np.save(sys.argv[2], np.concatenate((result.logits, again.logits)))
assert not BANNED & set(sys.modules)
print(sam.backend)
"""


def test_a_bundle_runs_where_torch_is_banned(
    pico: str, pico_bundle: Path, photo: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "photo.npy", photo)
    command = [sys.executable, "-c", TORCH_FREE, pico_bundle, tmp_path / "photo.npy", TESTS]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "onnx\n", "")
    embedding = vkrt.load(pico_bundle).encode(photo)
    wanted = embedding.predict(points=[[70, 40]]).logits
    again = embedding.predict(points=[[70, 40]], mask=wanted[0]).logits
    found = np.load(tmp_path / "photo.npy")
    np.testing.assert_allclose(found, np.concatenate((wanted, again)), rtol=1e-4, atol=1e-4)


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

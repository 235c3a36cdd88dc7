"""Every backend of bundles: the same call and results as PyTorch, without importing it."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from toys import WEIGHT, graph_model, product_stage

import vkrt
from vkrt import backends
from vkrt.backends.base import Backend
from vkrt.errors import BackendError
from vkrt.options import Options
from vkrt.stage import Port, Stage

TESTS = Path(__file__).resolve().parent
# Each backend, and the package that it runs on.
RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}
ADVICE = {"onnx": "use cpu, cuda or cuda:N$", "openvino": "use cpu$"}


@pytest.fixture(params=RUNTIMES)
def name(request: pytest.FixtureRequest) -> str:
    """Return the name of a backend that can run here."""
    pytest.importorskip(RUNTIMES[request.param])
    return request.param


@pytest.fixture
def backend(name: str) -> Backend:
    """Return the backend."""
    return backends.create(Options(backend=name))


@pytest.fixture
def product(tmp_path: Path) -> Stage:
    """Return a stage that gives x @ WEIGHT for x of n rows."""
    return product_stage(tmp_path)


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 4)).astype(np.float32)


# Programs.


@pytest.mark.parametrize("first", [1, 5, 0])
def test_any_size(backend: Backend, product: Stage, first: int) -> None:
    program = backend.prepare(product)
    for count in (first, 5, 0, 9, 2):
        x = rows(count)
        (y,) = program(x)
        assert y.shape == (count, 3) and y.dtype == np.float32
        np.testing.assert_allclose(y, x @ WEIGHT, rtol=1e-6)


def test_outputs_outlive_the_next_call(backend: Backend, product: Stage) -> None:
    program = backend.prepare(product)
    first = program(rows(3))[0]
    kept = first.copy()
    for count in (3, 3, 40):
        program(rows(count) + 1)
    np.testing.assert_array_equal(first, kept)
    assert not np.shares_memory(first, program(rows(3))[0])


def test_calls_from_several_threads(backend: Backend, product: Stage) -> None:
    program = backend.prepare(product)
    counts = [1 + n % 7 for n in range(64)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda count: program(rows(count))[0], counts))
    for count, y in zip(counts, found, strict=True):
        np.testing.assert_allclose(y, rows(count) @ WEIGHT, rtol=1e-6)


def test_inputs_of_other_layouts_and_dtypes(backend: Backend, product: Stage) -> None:
    program = backend.prepare(product)
    x = rows(6)
    wanted = x[::2] @ WEIGHT
    for given in (x[::2], np.asfortranarray(x[::2]), x[::2].astype(np.float64)):
        np.testing.assert_allclose(program(given)[0], wanted, rtol=1e-6)
    np.testing.assert_array_equal(x, rows(6))


def test_a_shape_that_does_not_fit(backend: Backend, product: Stage) -> None:
    program = backend.prepare(product)
    with pytest.raises(ValueError, match="x has shape"):
        program(np.zeros((2, 5), np.float32))
    with pytest.raises(ValueError, match="x has shape"):
        program(np.zeros(4, np.float32))
    with pytest.raises(ValueError, match="argument"):
        program(rows(1), rows(1))


def test_ports_of_another_file(backend: Backend, product: Stage) -> None:
    other = Stage("other", product.module, (Port("z", ("n", 4)),), product.outputs)
    with pytest.raises(BackendError, match="has x where other has z"):
        backend.prepare(other)


UNKNOWN = graph_model([helper.make_node("NoSuchOperator", ["x"], ["y"])], [])


@pytest.mark.parametrize(
    "content",
    [b"\x3a\x03\x0a\x01x", UNKNOWN.SerializeToString()],
    ids=["no graph", "unknown operator"],
)
def test_a_file_that_it_can_not_run(backend: Backend, product: Stage, content: bytes) -> None:
    product.module.write_bytes(content)
    with pytest.raises(BackendError, match="can't run") as caught:
        backend.prepare(product)
    assert "\n" not in str(caught.value)


def test_a_closed_backend_says_so(backend: Backend, product: Stage) -> None:
    program = backend.prepare(product)
    backend.close()
    with pytest.raises(BackendError, match="was closed"):
        program(rows(1))


def test_arrays_go_there_and_back(backend: Backend) -> None:
    array = np.arange(6, dtype=np.float32)
    assert backend.to_host(backend.from_host(array)) is array
    made = backend.empty((2, 5), "int32")
    assert (made.shape, made.dtype) == ((2, 5), np.int32)
    assert backend.device == "cpu"


@pytest.mark.parametrize("device", ["warp:9", "gpu"])
def test_an_unknown_device(name: str, device: str) -> None:
    with pytest.raises(BackendError, match=ADVICE[name]):
        backends.create(Options(backend=name, device=device))


@pytest.mark.parametrize("device", ["cuda:x", "cuda:-1", ""])
def test_what_is_no_device(name: str, device: str) -> None:
    with pytest.raises(BackendError, match="device must be auto, cpu, cuda or cuda:N, not '"):
        Options(backend=name, device=device)


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
    name: str,
    pico: str,
    pico_bundle: Path,
    pico_checkpoint: Path,
    photo: np.ndarray,
    prompts: list[dict[str, object]],
) -> None:
    ours, eager = vkrt.load(pico_bundle, backend=name), vkrt.load(pico, pico_checkpoint)
    assert (ours.name, ours.backend, ours.device) == (pico, name, "cpu")
    assert (eager.backend, eager.config) == ("eager", ours.config)
    for picture in (photo, photo[:, ::-1].copy()):
        one, other = ours.encode(picture), eager.encode(picture)
        for prompt in prompts:
            found, wanted = one.predict(**prompt), other.predict(**prompt)
            np.testing.assert_allclose(found.logits, wanted.logits, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-5)
            assert (found.masks == wanted.masks).mean() > 0.999


def test_a_batch_of_photos(name: str, pico: str, pico_bundle: Path, photo: np.ndarray) -> None:
    pictures = [photo, photo[::-1].copy(), photo[:, ::-1].copy()]
    together, alone = (vkrt.load(pico_bundle, backend=name) for _ in range(2))
    for embedding, picture in zip(together.encode(pictures), pictures, strict=True):
        found = embedding.predict(points=[[30, 30]]).logits
        wanted = alone.encode(picture).predict(points=[[30, 30]]).logits
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


# What must not be imported is refused, so that whoever imports it fails. The bundle finds by
# itself who runs it.
TORCH_FREE = """
import sys

class Ban:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BANNED:
            raise ImportError(f"{name} must not be imported")

BANNED = {"torch", "onnx", "onnxscript", "onnx_ir", "transformers", "scipy", "filelock"}
BANNED.update(sys.argv[4:])
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


def test_a_bundle_runs_where_torch_and_other_runtimes_are_banned(
    name: str, pico: str, pico_bundle: Path, photo: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "photo.npy", photo)
    others = [package for owner, package in RUNTIMES.items() if owner != name]
    command = [sys.executable, "-c", TORCH_FREE, pico_bundle, tmp_path / "photo.npy", TESTS]
    done = subprocess.run([*map(str, command), *others], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{name}\n", "")
    embedding = vkrt.load(pico_bundle, backend=name).encode(photo)
    wanted = embedding.predict(points=[[70, 40]]).logits
    again = embedding.predict(points=[[70, 40]], mask=wanted[0]).logits
    found = np.load(tmp_path / "photo.npy")
    np.testing.assert_allclose(found, np.concatenate((wanted, again)), rtol=1e-4, atol=1e-4)

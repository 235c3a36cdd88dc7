"""The openvino backend: the same call and results as the onnx backend, from the same files."""

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
from vkrt.errors import BackendError
from vkrt.options import Options
from vkrt.stage import Port, Stage

pytest.importorskip("openvino")

from openvino import properties

from vkrt.backends.openvino import DEVICE, OpenVinoBackend, settings

TESTS = Path(__file__).resolve().parent


@pytest.fixture
def product(tmp_path: Path) -> Stage:
    """Return a stage that gives x @ WEIGHT for x of n rows."""
    return product_stage(tmp_path)


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 4)).astype(np.float32)


def test_any_size(product: Stage) -> None:
    program = OpenVinoBackend(Options()).prepare(product)
    for count in (1, 5, 0, 9, 2):
        x = rows(count)
        (y,) = program(x)
        assert y.shape == (count, 3) and y.dtype == np.float32
        np.testing.assert_allclose(y, x @ WEIGHT, rtol=1e-6)


def test_outputs_outlive_the_next_call(product: Stage) -> None:
    program = OpenVinoBackend(Options()).prepare(product)
    first = program(rows(3))[0]
    kept = first.copy()
    for count in (3, 3, 40):
        program(rows(count) + 1)
    np.testing.assert_array_equal(first, kept)
    assert not np.shares_memory(first, program(rows(3))[0])


def test_calls_from_several_threads(product: Stage) -> None:
    program = OpenVinoBackend(Options()).prepare(product)
    counts = [1 + n % 7 for n in range(64)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda count: program(rows(count))[0], counts))
    for count, y in zip(counts, found, strict=True):
        np.testing.assert_allclose(y, rows(count) @ WEIGHT, rtol=1e-6)


def test_inputs_of_other_layouts_and_dtypes(product: Stage) -> None:
    program = OpenVinoBackend(Options()).prepare(product)
    x = rows(6)
    wanted = x[::2] @ WEIGHT
    for given in (x[::2], np.asfortranarray(x[::2]), x[::2].astype(np.float64)):
        np.testing.assert_allclose(program(given)[0], wanted, rtol=1e-6)
    np.testing.assert_array_equal(x, rows(6))


def test_a_shape_that_does_not_fit(product: Stage) -> None:
    program = OpenVinoBackend(Options()).prepare(product)
    with pytest.raises(ValueError, match="x has shape"):
        program(np.zeros((2, 5), np.float32))
    with pytest.raises(ValueError, match="argument"):
        program(rows(1), rows(1))


def test_ports_of_another_file(product: Stage) -> None:
    other = Stage("other", product.module, (Port("z", ("n", 4)),), product.outputs)
    with pytest.raises(BackendError, match="has x where other has z"):
        OpenVinoBackend(Options()).prepare(other)


def test_a_file_that_it_can_not_run(product: Stage) -> None:
    node = helper.make_node("NoSuchOperator", ["x"], ["y"])
    product.module.write_bytes(graph_model([node], []).SerializeToString())
    with pytest.raises(BackendError, match="can't run") as caught:
        OpenVinoBackend(Options()).prepare(product)
    assert "\n" not in str(caught.value)


def test_a_closed_backend_says_so(product: Stage) -> None:
    backend = OpenVinoBackend(Options())
    program = backend.prepare(product)
    backend.close()
    with pytest.raises(BackendError, match="was closed"):
        program(rows(1))


def test_threads_are_explicit() -> None:
    backend = OpenVinoBackend(Options(threads=3))
    assert settings(3)[properties.inference_num_threads] == 3
    assert backend._settings == settings(3) and DEVICE in backend._core.available_devices


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "gpu", ""])
def test_an_unknown_device(device: str) -> None:
    with pytest.raises(BackendError, match="use cpu"):
        OpenVinoBackend(Options(device=device))


# A whole model, against PyTorch.


def test_a_bundle_answers_as_pytorch_does(
    pico: str, pico_bundle: Path, pico_checkpoint: Path, photo: np.ndarray
) -> None:
    ours = vkrt.load(pico_bundle, backend="openvino")
    eager = vkrt.load(pico, pico_checkpoint)
    assert (ours.name, ours.backend, ours.device) == (pico, "openvino", "cpu")
    earlier = np.random.default_rng(3).standard_normal((16, 16)).astype(np.float32)
    prompts = [
        {"points": [[70, 40]]},
        {"points": [[70, 40], [5, 80]], "labels": [1, 0], "multimask": False},
        {"box": [[45, 15, 95, 65], [0, 0, 30, 30], [5, 5, 100, 80]], "multimask": False},
        {"mask": earlier, "points": [[70, 40]]},
    ]
    for picture in (photo, photo[:, ::-1].copy()):
        one, other = ours.encode(picture), eager.encode(picture)
        for prompt in prompts:
            found, wanted = one.predict(**prompt), other.predict(**prompt)
            np.testing.assert_allclose(found.logits, wanted.logits, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-5)
            assert (found.masks == wanted.masks).mean() > 0.999


def test_a_batch_of_photos(pico: str, pico_bundle: Path, photo: np.ndarray) -> None:
    pictures = [photo, photo[::-1].copy(), photo[:, ::-1].copy()]
    together, alone = (vkrt.load(pico_bundle, backend="openvino") for _ in range(2))
    for embedding, picture in zip(together.encode(pictures), pictures, strict=True):
        found = embedding.predict(points=[[30, 30]]).logits
        wanted = alone.encode(picture).predict(points=[[30, 30]]).logits
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


TORCH_FREE = """
import sys

class Ban:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BANNED:
            raise ImportError(f"{name} must not be imported")

BANNED = {"torch", "onnx", "onnxruntime", "onnxscript", "onnx_ir"}
sys.meta_path.insert(0, Ban())
sys.path.insert(0, sys.argv[2])
import numpy as np
from pico import NAME, PICO
from vkrt import catalog
catalog._MODELS[NAME] = PICO
import vkrt
sam = vkrt.load(sys.argv[1])
sam.encode(np.zeros((40, 60, 3), np.uint8)).predict(points=[[30, 20]])
print(sam.backend)
"""


def test_it_serves_where_torch_and_onnxruntime_are_banned(pico_bundle: Path) -> None:
    command = [sys.executable, "-c", TORCH_FREE, str(pico_bundle), str(TESTS)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "openvino\n", "")

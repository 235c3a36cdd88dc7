"""Exported once: the cache of bundles, whoever asks, however often and from several processes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from toys import HEADER, write_toy

import vkrt
from vkrt import backends, catalog
from vkrt.bundle import building, read_bundle
from vkrt.errors import BackendError, OutputError
from vkrt.export import cache
from vkrt.export.cache import bundle_key, cached_bundle
from vkrt.export.int8.cpu import needs_reduced_range

TESTS = Path(__file__).resolve().parent


@pytest.fixture(autouse=True)
def bundles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return an empty cache of bundles; "auto" means what it means for a user."""
    monkeypatch.setenv("VKRT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VKRT_BACKEND")
    return tmp_path / "cache" / "bundles"


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch, pico_bundle: Path) -> list[str]:
    """Let an export copy a ready bundle, and return the list of precisions exported so far."""
    made: list[str] = []

    def export_weights(
        name: str | None,
        source: Path,
        folder: Path,
        precision: str,
        image_size: int | None,
        started: Callable[[str], None],
    ) -> None:
        started(name or "any")
        made.append(precision)
        time.sleep(0.2)
        with building(folder, force=True) as part:
            shutil.copytree(pico_bundle, part, dirs_exist_ok=True)

    monkeypatch.setattr(cache, "export_weights", export_weights)
    return made


def no_exporters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_EXPORTERS", ("torch", "no_such_exporter"))


# What a load does.


def test_the_first_load_exports_and_says_so(
    pico: str,
    pico_checkpoint: Path,
    exports: list[str],
    bundles: Path,
    photo: np.ndarray,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sam = vkrt.load(pico, pico_checkpoint, backend="onnx")
    assert capsys.readouterr().err == (
        f"vkrt: exporting {pico} as a bundle, once; later loads find it\n"
    )
    assert sam.backend == "onnx" and exports == ["fp32"]
    assert sam.encode(photo).predict(points=[[70, 40]]).masks.shape == (3, 90, 120)
    for _ in range(2):
        assert vkrt.load(pico, pico_checkpoint, backend="onnx").backend == "onnx"
    assert exports == ["fp32"] and capsys.readouterr().err == ""
    (folder,) = (path for path in bundles.iterdir() if path.is_dir())
    assert folder.name.startswith(f"{pico}-64-fp32-")


def test_auto_is_onnx_on_a_cpu(pico: str, pico_checkpoint: Path, exports: list[str]) -> None:
    assert vkrt.load(pico, pico_checkpoint, device="cpu").backend == "onnx"
    assert vkrt.load(pico, pico_checkpoint, precision="fp32", device="cpu").backend == "onnx"
    assert exports == ["fp32"]


def test_auto_is_eager_where_precision_is_reduced(
    pico: str, pico_checkpoint: Path, exports: list[str]
) -> None:
    assert vkrt.load(pico, pico_checkpoint, precision="bf16", device="cpu").backend == "eager"
    assert not exports


def test_auto_is_eager_on_a_gpu(
    pico: str, pico_checkpoint: Path, exports: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "on_gpu", lambda device: True)
    assert vkrt.load(pico, pico_checkpoint).backend == "eager" and not exports


def test_the_environment_decides_for_auto(
    pico: str, pico_checkpoint: Path, exports: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VKRT_BACKEND", "eager")
    assert vkrt.load(pico, pico_checkpoint).backend == "eager" and not exports
    assert vkrt.load(pico, pico_checkpoint, backend="onnx").backend == "onnx"
    monkeypatch.setenv("VKRT_BACKEND", "abacus")
    with pytest.raises(BackendError, match="backend must be one of"):
        vkrt.load(pico, pico_checkpoint)


def test_without_exporters_nothing_is_exported(
    pico: str, pico_checkpoint: Path, exports: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_exporters(monkeypatch)
    assert vkrt.load(pico, pico_checkpoint, device="cpu").backend == "eager"
    with pytest.raises(BackendError, match=r"needs no_such_exporter.*vkrt\[torch,cpu\]"):
        vkrt.load(pico, pico_checkpoint, backend="onnx")
    assert not exports


def test_a_cached_bundle_needs_no_exporters(
    pico: str, pico_checkpoint: Path, exports: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    vkrt.load(pico, pico_checkpoint, backend="onnx")
    no_exporters(monkeypatch)
    for backend in ("auto", "onnx"):
        assert vkrt.load(pico, pico_checkpoint, backend=backend, device="cpu").backend == "onnx"
    assert exports == ["fp32"]


@pytest.mark.parametrize("error", [BackendError("outputs differ"), OutputError("disk is full")])
def test_a_failed_export_leaves_auto_with_eager(
    pico: str, pico_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def export_weights(*_: object) -> None:
        raise error

    monkeypatch.setattr(cache, "export_weights", export_weights)
    with pytest.warns(RuntimeWarning, match=f"eager PyTorch runs .*{error}"):
        assert vkrt.load(pico, pico_checkpoint, device="cpu").backend == "eager"
    with pytest.raises(type(error), match=str(error)):
        vkrt.load(pico, pico_checkpoint, backend="onnx")


def test_a_cache_that_cannot_be_written(
    pico: str, pico_checkpoint: Path, bundles: Path, exports: list[str]
) -> None:
    bundles.parent.write_bytes(b"a file where the folder should be")
    with pytest.raises(OutputError, match="VKRT_CACHE"):
        vkrt.load(pico, pico_checkpoint, backend="onnx")
    assert not exports


def test_precisions(pico: str, pico_checkpoint: Path, exports: list[str]) -> None:
    for precision in ("auto", "fp32", "fp16", "int8"):
        vkrt.load(pico, pico_checkpoint, backend="onnx", precision=precision)
    assert exports == ["fp32", "fp16", "int8"]
    with pytest.raises(BackendError, match="no bf16"):
        vkrt.load(pico, pico_checkpoint, backend="onnx", precision="bf16")


def test_int8_is_onnx_alone(
    pico: str, pico_checkpoint: Path, exports: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BackendError, match="eager PyTorch has no int8"):
        vkrt.load(pico, pico_checkpoint, backend="eager", precision="int8")
    monkeypatch.setattr(backends, "on_gpu", lambda device: True)
    assert vkrt.load(pico, pico_checkpoint, precision="int8").backend == "onnx"
    assert exports == ["int8"]
    no_exporters(monkeypatch)
    with pytest.raises(BackendError, match="needs no_such_exporter"):
        vkrt.load(pico, pico_checkpoint, image_size=96, precision="int8")


def test_without_onnxruntime(
    pico: str, pico_checkpoint: Path, exports: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = backends.find_spec
    monkeypatch.setattr(
        backends, "find_spec", lambda name: None if name == "onnxruntime" else real(name)
    )
    assert vkrt.load(pico, pico_checkpoint, device="cpu").backend == "eager"
    with pytest.raises(BackendError, match=r"onnxruntime is not installed.*'vkrt\[cpu\]'"):
        vkrt.load(pico, pico_checkpoint, backend="onnx")
    assert not exports


def test_other_weights_of_the_same_model_are_another_bundle(
    pico: str, pico_checkpoint: Path, exports: list[str], tmp_path: Path
) -> None:
    from pico import write_checkpoint

    other = tmp_path / "other.safetensors"
    write_checkpoint(other, seed=1)
    copy = Path(shutil.copy(pico_checkpoint, tmp_path / "copy.safetensors"))
    for checkpoint in (pico_checkpoint, other, copy):
        vkrt.load(pico, checkpoint, backend="onnx")
    assert len(exports) == 2


def test_a_path_alone_has_a_bundle_too(
    pico: str, pico_checkpoint: Path, exports: list[str]
) -> None:
    for _ in range(2):
        assert vkrt.load(pico_checkpoint, backend="onnx").name == pico
    assert len(exports) == 1


# The key.


def test_the_key_holds_all_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"weights")
    (tmp_path / "b").write_bytes(b"weights")
    (tmp_path / "c").write_bytes(b"others")
    a, b, c = ([tmp_path / name] for name in "abc")
    name, size = "sam2.1-nano", catalog.find("sam2.1-nano").config.image_size
    key = bundle_key(name, size, "fp32", a)
    assert key == bundle_key(name, size, "fp32", b) == bundle_key("SAM2.1_nano", None, "fp32", a)
    others = {
        bundle_key("sam2.1-tiny", size, "fp32", a),
        bundle_key(name, 96, "fp32", a),
        bundle_key(None, size, "fp32", a),
        bundle_key(name, size, "fp16", a),
        bundle_key(name, size, "int8", a),
        bundle_key(name, size, "fp32", c),
        bundle_key(name, size, "fp32", a + b),
    }
    # Of two CPUs that share a cache, each gets what it can do.
    monkeypatch.setattr(cache, "needs_reduced_range", lambda: not needs_reduced_range())
    others.add(bundle_key(name, size, "int8", a))
    assert key == bundle_key(name, size, "fp32", a)
    monkeypatch.undo()
    monkeypatch.setattr(cache, "__version__", "9.9")
    others.add(bundle_key(name, size, "fp32", a))
    monkeypatch.undo()
    monkeypatch.setattr(cache, "source_digest", lambda: "another")
    others.add(bundle_key(name, size, "fp32", a))
    assert len(others) == 10 and key not in others
    assert set(key) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-")


# The folder.


def test_a_damaged_bundle_is_made_anew(tmp_path: Path) -> None:
    folder, made = tmp_path / "b", []

    def make(target: Path) -> None:
        made.append(target)
        write_toy(target, force=True)

    assert cached_bundle(folder, None) is None
    for damage in (
        lambda: None,
        lambda: (folder / "product.onnx").write_bytes(b"x"),
        lambda: (folder / "product.onnx").unlink(),
        lambda: (folder / "manifest.json").write_text("{"),
        lambda: (folder / "manifest.json").unlink(),
    ):
        damage()
        before = len(made)
        bundle = cached_bundle(folder, make)
        assert bundle is not None and bundle.header == HEADER and len(made) == before + 1
        assert cached_bundle(folder, make) is not None and len(made) == before + 1
    (folder / "product.onnx").write_bytes(b"x")
    assert cached_bundle(folder, None) is None


def test_a_failed_export_leaves_no_lock(tmp_path: Path) -> None:
    def fail(target: Path) -> None:
        raise BackendError("no")

    for _ in range(2):
        with pytest.raises(BackendError):
            cached_bundle(tmp_path / "b", fail)
    assert cached_bundle(tmp_path / "b", write_toy) is not None


def test_two_threads_export_once(pico: str, pico_checkpoint: Path, exports: list[str]) -> None:
    start, found = threading.Barrier(2), []

    def load() -> None:
        start.wait()
        found.append(vkrt.load(pico, pico_checkpoint, backend="onnx").backend)

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["onnx", "onnx"] and exports == ["fp32"]


RACE = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from toys import write_toy
from vkrt.export.cache import cached_bundle

folder, log = map(Path, sys.argv[2:])

def make(target):
    with log.open("a") as file:
        file.write("made\\n")
    time.sleep(0.5)
    write_toy(target, force=True)

# Both have started before either goes on.
log.with_name(f"{time.time_ns()}.ready").touch()
while len(list(log.parent.glob("*.ready"))) < 2:
    time.sleep(0.01)
print(cached_bundle(folder, make).header.model)
"""


def test_two_processes_export_once(tmp_path: Path) -> None:
    folder, log = tmp_path / "cache" / "b", tmp_path / "log"
    command = [sys.executable, "-c", RACE, *map(str, (TESTS, folder, log))]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [p.communicate(timeout=120)[0] for p in both] == ["sam2.1-nano\n"] * 2
    assert log.read_text() == "made\n"
    assert read_bundle(folder).header == HEADER

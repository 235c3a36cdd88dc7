"""Exported once: the cache of bundles, whoever asks, however often and from several processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from toys import HEADER, write_toy

import vkrt
from vkrt import backends, catalog, options
from vkrt.bundle import building, read_bundle
from vkrt.errors import BackendError, OutputError
from vkrt.export import cache, file_records, refusals
from vkrt.export.cache import bundle_key, cached_bundle
from vkrt.export.int8.cpu import needs_reduced_range
from vkrt.exporting import export_model, export_to_cache

TESTS = Path(__file__).resolve().parent


@pytest.fixture(autouse=True)
def bundles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return an empty cache of bundles; "auto" means what it means for a user."""
    monkeypatch.setenv("VKRT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VKRT_BACKEND")
    monkeypatch.delenv("VKRT_EXPORT")
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
        report: Callable[[str, float], None],
    ) -> None:
        started(name or "any")
        report("tracing", 0.5)
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


def test_auto_exports_nothing_by_itself(
    pico: str, pico_checkpoint: Path, exports: list[str], bundles: Path
) -> None:
    for way in ("auto", "never"):
        sam = vkrt.load(pico, pico_checkpoint, device="cpu", export=way)
        assert sam.backend == "eager" and not exports and not bundles.exists()


def test_auto_is_onnx_on_a_cpu_once_exported(
    pico: str, pico_checkpoint: Path, exports: list[str]
) -> None:
    told: list[tuple[str, float]] = []
    given = {"device": "cpu", "report": lambda *said: told.append(said)}
    assert vkrt.load(pico, pico_checkpoint, export="first", **given).backend == "onnx"
    assert ("tracing", 0.5) in told
    for way in ("auto", "behind", "first", "never"):
        assert vkrt.load(pico, pico_checkpoint, export=way, device="cpu").backend == "onnx"
    assert vkrt.load(pico, pico_checkpoint, precision="fp32", device="cpu").backend == "onnx"
    assert exports == ["fp32"]


def test_the_environment_says_when_to_export(
    pico: str, pico_checkpoint: Path, exports: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VKRT_EXPORT", "never")
    assert vkrt.load(pico, pico_checkpoint).backend == "eager"
    monkeypatch.setenv("VKRT_EXPORT", "first")
    assert vkrt.load(pico, pico_checkpoint, export="never").backend == "eager" and not exports
    assert vkrt.load(pico, pico_checkpoint).backend == "onnx" and exports == ["fp32"]
    monkeypatch.setenv("VKRT_EXPORT", "sometimes")
    with pytest.raises(BackendError, match="VKRT_EXPORT must be one of auto, behind, first, never"):
        vkrt.load(pico, pico_checkpoint, image_size=96)


@pytest.mark.parametrize("by_function", [False, True])
def test_a_service_forbids_every_export(
    pico: str,
    pico_checkpoint: Path,
    exports: list[str],
    monkeypatch: pytest.MonkeyPatch,
    by_function: bool,
    tmp_path: Path,
) -> None:
    if by_function:
        monkeypatch.setattr(options, "_forbidden", False)
        options.forbid_exports()
    else:
        monkeypatch.setenv("VKRT_EXPORT", "forbid")
    for way in ("auto", "first", "behind", "never"):
        sam = vkrt.load(pico, pico_checkpoint, device="cpu", export=way)
        assert sam.backend == "eager"
    how = r"vkrt\.forbid_exports\(\)" if by_function else "VKRT_EXPORT=forbid"
    for asked in ({"backend": "onnx"}, {"backend": "openvino"}, {"precision": "int8"}):
        with pytest.raises(BackendError, match=f"{how} forbids") as caught:
            vkrt.load(pico, pico_checkpoint, **asked)
        assert "\n" not in str(caught.value)
    with pytest.raises(BackendError, match="forbids"):
        export_model(pico, tmp_path / "out.vkrt", pico_checkpoint)
    with pytest.raises(BackendError, match="forbids"):
        export_to_cache(pico, pico_checkpoint)
    assert not exports and not (tmp_path / "out.vkrt").exists()


def test_an_exported_one_runs_where_exports_are_forbidden(
    pico: str, pico_checkpoint: Path, exports: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert export_to_cache(pico, pico_checkpoint).header.model == pico
    monkeypatch.setenv("VKRT_EXPORT", "forbid")
    for backend in ("auto", "onnx"):
        assert vkrt.load(pico, pico_checkpoint, backend=backend, device="cpu").backend == "onnx"
    assert exports == ["fp32"]


def test_auto_is_eager_where_precision_is_reduced(
    pico: str, pico_checkpoint: Path, exports: list[str]
) -> None:
    given = {"precision": "bf16", "device": "cpu", "export": "first"}
    assert vkrt.load(pico, pico_checkpoint, **given).backend == "eager" and not exports


def test_auto_is_eager_on_a_gpu(
    pico: str, pico_checkpoint: Path, exports: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "on_gpu", lambda device: True)
    assert vkrt.load(pico, pico_checkpoint, export="first").backend == "eager" and not exports


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
    sam = vkrt.load(pico, pico_checkpoint, device="cpu", export="first")
    assert sam.backend == "eager"
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


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """Return the errors that exports are going to raise; the last one stays."""
    errors: list[Exception] = []

    def export_weights(*_: object, **__: object) -> None:
        raise errors[0] if len(errors) == 1 else errors.pop(0)

    monkeypatch.setattr(cache, "export_weights", export_weights)
    return errors


@pytest.mark.parametrize("error", [BackendError("outputs differ"), OutputError("disk is full")])
def test_a_failed_export_leaves_auto_with_eager(
    pico: str, pico_checkpoint: Path, failing: list[Exception], error: Exception
) -> None:
    failing.append(error)
    with pytest.warns(RuntimeWarning, match=f"eager PyTorch runs .*{error}"):
        sam = vkrt.load(pico, pico_checkpoint, device="cpu", export="first")
    assert sam.backend == "eager"
    with pytest.raises(type(error), match=str(error)):
        vkrt.load(pico, pico_checkpoint, backend="onnx")


def test_the_environment_hears_of_a_failure_once(
    pico: str, pico_checkpoint: Path, failing: list[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing.append(BackendError("outputs differ"))
    monkeypatch.setenv("VKRT_EXPORT", "first")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2):
            assert vkrt.load(pico, pico_checkpoint, device="cpu").backend == "eager"
        assert len(told) == 1
        for _ in range(2):
            vkrt.load(pico, pico_checkpoint, device="cpu", export="first")
    assert len(told) == 3


def test_a_refusal_is_remembered_until_versions_change(
    pico: str,
    pico_checkpoint: Path,
    failing: list[Exception],
    monkeypatch: pytest.MonkeyPatch,
    bundles: Path,
) -> None:
    failing += [BackendError("outputs differ"), AssertionError("it was tried again")]
    with pytest.raises(BackendError, match=r"^outputs differ$"):
        vkrt.load(pico, pico_checkpoint, backend="onnx")
    for _ in range(2):
        with pytest.raises(BackendError, match=r"outputs differ \(an earlier try.*cache clear"):
            vkrt.load(pico, pico_checkpoint, backend="onnx")
    assert vkrt.load(pico, pico_checkpoint, export="behind").backend == "eager"
    (refusal,) = refusals.all_refusals(bundles).values()
    assert (refusal.model, refusal.reason) == (pico, "outputs differ")
    assert refusal.checkpoint == str(pico_checkpoint) and refusal.lasting
    assert set(refusal.versions) == {
        "vkrt",
        "torch",
        "onnxruntime",
        "onnx",
        "onnxscript",
        "onnx-ir",
    }
    real = refusals.version_of
    monkeypatch.setattr(
        refusals, "version_of", lambda name: "9.9" if name == "onnx" else real(name)
    )
    assert not refusals.all_refusals(bundles)
    with pytest.raises(AssertionError, match="tried again"):
        vkrt.load(pico, pico_checkpoint, backend="onnx")


def test_what_may_pass_is_tried_again_when_asked_for(
    pico: str,
    pico_checkpoint: Path,
    failing: list[Exception],
    bundles: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failing += [OutputError("disk is full"), OutputError("still full")]
    for words in ("disk is full", "still full"):
        with pytest.raises(OutputError, match=words):
            vkrt.load(pico, pico_checkpoint, backend="onnx")
    wanted = cache.Exportable(pico, pico_checkpoint, None, "fp32", bundles.parent)
    refusal = wanted.refusal()
    assert refusal is not None and not refusal.lasting
    later = time.time() + refusals.PASSES_AFTER_SECONDS + 1
    monkeypatch.setattr(refusals.time, "time", lambda: later)
    assert wanted.refusal() is None


def test_a_damaged_refusal_is_none(
    pico: str, pico_checkpoint: Path, exports: list[str], bundles: Path
) -> None:
    wanted = cache.Exportable(pico, pico_checkpoint, None, "fp32", bundles.parent)
    bundles.mkdir(parents=True)
    for text in ("", "[]", "{}", '{"model": 1}', "\0" * 99):
        wanted.folder.with_name(f"{wanted.folder.name}{refusals.SUFFIX}").write_text(text)
        assert wanted.refusal() is None
    assert vkrt.load(pico, pico_checkpoint, backend="onnx").backend == "onnx"
    # What was wrong before is of no interest now.
    assert not list(bundles.glob(f"*{refusals.SUFFIX}"))


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
    assert vkrt.load(pico, pico_checkpoint, device="cpu", export="first").backend == "eager"
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
    for arguments in ((pico_checkpoint,), (pico_checkpoint,), (pico, pico_checkpoint)):
        assert vkrt.load(*arguments, backend="onnx").name == pico
    assert exports == ["fp32"]


def test_a_path_alone_is_known_again_without_torch(
    pico: str, pico_checkpoint: Path, exports: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    vkrt.load(pico, pico_checkpoint, backend="onnx")
    assert vkrt.load(pico_checkpoint, device="cpu").backend == "onnx"
    no_exporters(monkeypatch)
    assert vkrt.load(pico_checkpoint, device="cpu").backend == "onnx" and exports == ["fp32"]


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


def test_weights_are_read_for_their_digest_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, store, read = tmp_path / "weights", tmp_path / "cache", []
    real = file_records.digest_of

    def digest_of(path: Path) -> str:
        read.append(path)
        return real(path)

    monkeypatch.setattr(file_records, "digest_of", digest_of)
    file.write_bytes(b"weights")
    os.utime(file, (1, 1))
    first = file_records.remembered_digest(store, file)
    assert first == real(file) == file_records.remembered_digest(store, file)
    assert len(read) == 1
    # The same size and time, copied over it.
    other = tmp_path / "other"
    other.write_bytes(b"WEIGHTS")
    shutil.copyfile(other, file)
    os.utime(file, (1, 1))
    assert file_records.remembered_digest(store, file) == real(other) != first
    # Another one in its place.
    os.replace(other, file)
    os.utime(file, (1, 1))
    assert file_records.remembered_digest(store, file) != first and len(read) == 3


def test_a_file_of_just_now_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    for content in (b"one", b"two"):
        file.write_bytes(content)
        found = file_records.remembered_digest(tmp_path / "cache", file)
        assert found == file_records.digest_of(file)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"file": 1}', "[" * 5000, "x" * 70_000])
def test_a_damaged_record_is_none(tmp_path: Path, damage: str) -> None:
    file, store = tmp_path / "weights", tmp_path / "cache"
    file.touch()
    assert file_records.remember(store, file, sha256="known")
    assert file_records.recall(store, file) == {"sha256": "known"}
    file_records.place(store, file).write_text(damage)
    assert file_records.recall(store, file) == {}


def test_things_are_told_once_of_a_file(tmp_path: Path) -> None:
    file, store = tmp_path / "weights", tmp_path / "cache"
    file.touch()
    assert [file_records.first_time(store, file, what) for what in "aabab"] == [
        *(True, False, True, False, False)
    ]
    file.write_bytes(b"other weights")
    assert file_records.first_time(store, file, "a")
    blocked = tmp_path / "blocked"
    blocked.touch()
    assert not file_records.first_time(blocked, file, "a")


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

"""A model goes over from PyTorch to a bundle between two calls, and only the clock shows it."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vkrt
from vkrt import backends, loading_sam2, options
from vkrt.bundle import read_bundle
from vkrt.engines.sam2_image import Segmenter
from vkrt.errors import BackendError
from vkrt.export import behind
from vkrt.export.behind import ExportBehind
from vkrt.export.cache import Exportable
from vkrt.export.refusals import Refusal, versions, write_refusal
from vkrt.options import Options

TESTS = Path(__file__).resolve().parent
CLICK: dict[str, Any] = {"points": [[70, 40]]}
# Of logits, between backends.
CLOSE = 1e-4


@pytest.fixture
def sam(pico: str, pico_checkpoint: Path) -> Iterator[Segmenter]:
    """Return the smallest model on PyTorch."""
    with vkrt.load(pico, pico_checkpoint, backend="eager") as loaded:
        yield loaded


def go_over(sam: Segmenter, folder: Path) -> None:
    bundle = read_bundle(folder)
    backend = backends.create(Options(backend="onnx", device="cpu"))
    sam.switch_to(bundle.stages, backend, bundle.header.fingerprint)


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    assert wanted.std() > 1e-3, "nothing to compare"
    np.testing.assert_allclose(found, wanted, atol=CLOSE * np.abs(wanted).max())


# What a switch leaves as it was.


def test_masks_agree_and_embeddings_survive(
    sam: Segmenter, pico_bundle: Path, photo: np.ndarray, tmp_path: Path
) -> None:
    kept, other = sam.encode([photo, photo[::-1]])
    before, flipped = kept.predict(**CLICK), other.predict(box=[20, 20, 90, 80])
    low = before.logits[before.best]
    refined = kept.predict(**CLICK, mask=low, multimask=False)
    other.save(tmp_path / "before.emb")
    go_over(sam, pico_bundle)
    assert (sam.backend, sam.device) == ("onnx", "cpu")
    # Out of the cache: the photo is not encoded again.
    assert sam.encode(photo) is kept
    close(kept.predict(**CLICK).logits, before.logits)
    close(other.predict(box=[20, 20, 90, 80]).logits, flipped.logits)
    close(kept.predict(**CLICK, mask=low, multimask=False).logits, refined.logits)
    assert all(isinstance(array, np.ndarray) for array in kept.features)
    # What was never encoded by PyTorch.
    close(
        sam.load_embedding(tmp_path / "before.emb").predict(**CLICK).logits,
        other.predict(**CLICK).logits,
    )
    fresh = sam.encode(photo[:, ::-1]).predict(**CLICK).logits
    with vkrt.load(pico_bundle) as whole:
        close(fresh, whole.encode(photo[:, ::-1]).predict(**CLICK).logits)
    other.save(tmp_path / "after.emb")
    with vkrt.load(pico_bundle) as whole:
        assert whole.load_embedding(tmp_path / "after.emb").key == other.key


def test_maps_are_of_whatever_holds_them(
    sam: Segmenter, pico_bundle: Path, photo: np.ndarray
) -> None:
    embedding = sam.encode(photo)
    before = sam.feature_maps(embedding)
    go_over(sam, pico_bundle)
    after = sam.feature_maps(embedding)
    assert all((after[name] == before[name]).all() and before[name].std() > 0 for name in before)


def test_a_stream_and_a_track_go_on_as_they_began(
    sam: Segmenter, pico_bundle: Path, photo: np.ndarray
) -> None:
    frames = [photo, np.roll(photo, 3, axis=1), np.roll(photo, 6, axis=1)]

    def scores(change: bool) -> np.ndarray:
        # Random weights see no object, which hides the logits.
        found: list[np.ndarray] = []
        stream = sam.stream()
        with sam.track(frames) as track:
            track.prompt(0, 1, points=[[70, 40]])
            tracked = track.propagate()
            for index, frame in enumerate(frames):
                prompts = [vkrt.Prompt(1, points=[[70, 40]])] if index == 0 else []
                for result in (stream.step(frame, prompts), next(tracked)):
                    found += [result.object_scores, result.scores]
                if change and index == 0:
                    go_over(sam, pico_bundle)
        return np.stack(found)

    wanted = scores(change=False)
    found = scores(change=True)
    assert sam.backend == "onnx" and found.shape == (12, 1) and len(np.unique(wanted)) > 6
    # On the backend on which they began: to the bit.
    np.testing.assert_array_equal(found, wanted)
    close(scores(change=False), wanted)


def test_calls_of_many_threads_are_all_answered(
    sam: Segmenter, pico_bundle: Path, photo: np.ndarray
) -> None:
    photos = [np.roll(photo, 5 * shift, axis=1) for shift in range(4)]
    wanted = [sam.encode(each).predict(**CLICK).logits for each in photos]
    kept = [sam.encode(each) for each in photos]
    stop = threading.Event()

    def ask(number: int) -> int:
        count = 0
        while not stop.is_set() or count < 4:
            which = (number + count) % len(photos)
            # By turns a kept embedding, and a photo that is encoded anew.
            shown = photos[which] if count % 2 else np.ascontiguousarray(photos[which])
            embedding = sam.encode(shown) if count % 2 else kept[which]
            close(embedding.predict(**CLICK).logits, wanted[which])
            count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, number) for number in range(4)]
        time.sleep(0.1)
        go_over(sam, pico_bundle)
        time.sleep(0.1)
        stop.set()
        assert min(each.result() for each in asked) >= 4
    assert sam.backend == "onnx"


def test_the_weights_of_before_are_let_go(
    pico: str, pico_checkpoint: Path, pico_bundle: Path, photo: np.ndarray
) -> None:
    with vkrt.load(pico, pico_checkpoint, backend="eager") as sam:
        module = weakref.ref(sam.runtimes.now.stages["mask_decoder"].module)
        sam.encode(photo).predict(**CLICK)
        go_over(sam, pico_bundle)
        gc.collect()
        assert module() is None


def test_a_closed_model_closes_what_ran_before(
    sam: Segmenter, pico_bundle: Path, photo: np.ndarray
) -> None:
    stream = sam.stream()
    stream.step(photo, [vkrt.Prompt(1, points=[[70, 40]])])
    go_over(sam, pico_bundle)
    sam.close()
    with pytest.raises(BackendError, match="closed"):
        stream.step(photo, [vkrt.Prompt(2, mask=np.ones(photo.shape[:2], bool))])
    go_over(sam, pico_bundle)
    with pytest.raises(BackendError, match="closed"):
        sam.encode(photo[::-1])


# The process that exports behind.

# It knows the smallest model, and copies a ready bundle after a while.
CHILD = """
import os, shutil, sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from pico import NAME, PICO
from vkrt import catalog
from vkrt.bundle import building
from vkrt.errors import BackendError
from vkrt.export import behind, cache

def export_weights(name, source, folder, *_, report):
    with building(folder, force=True) as part:
        (part / "half").touch()
        Path({seen!r}).write_text(str((os.getpid(), os.nice(0))))
        {work}
        (part / "half").unlink()
        shutil.copytree({bundle!r}, part, dirs_exist_ok=True)

catalog._MODELS[NAME] = PICO
cache.export_weights = export_weights
behind.main()
"""


class Child:
    """Say what the process that exports does, and how far it is.

    Attributes:
        seen: a file that it writes once it exports: its process id and niceness.
    """

    def __init__(self, bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen = folder / "seen"
        self.bundles = folder / "cache" / "bundles"
        self._bundle, self._patch = bundle, monkeypatch

    def does(self, work: str) -> None:
        known = {"tests": str(TESTS), "seen": str(self.seen), "bundle": str(self._bundle)}
        self._patch.setattr(behind, "CODE", CHILD.format(work=work, **known))

    def wait_until_seen(self) -> tuple[int, int]:
        until(self.seen.exists)
        until(self.seen.read_text)
        pid, niceness = eval(self.seen.read_text())
        return pid, niceness

    def left(self) -> set[str]:
        return {path.name for path in self.bundles.iterdir() if path.suffix != ".lock"}


def until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.02)


@pytest.fixture
def child(pico_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Child:
    """Return what exports behind; "auto" means what it means for a user."""
    monkeypatch.setenv("VKRT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VKRT_BACKEND", raising=False)
    monkeypatch.delenv("VKRT_EXPORT", raising=False)
    monkeypatch.setattr(behind, "POLL_SECONDS", 0.05)
    made = Child(pico_bundle, tmp_path, monkeypatch)
    made.does("pass")
    return made


def exporting(sam: Segmenter) -> ExportBehind:
    found = sam.runtimes.background
    assert isinstance(found, ExportBehind)
    return found


def test_a_model_in_use_goes_over_once_it_was_exported(
    child: Child, pico: str, pico_checkpoint: Path, photo: np.ndarray
) -> None:
    with vkrt.load(pico, pico_checkpoint, device="cpu", export="behind") as sam:
        assert sam.backend == "eager"
        embedding = sam.encode(photo)
        before = embedding.predict(**CLICK).logits
        until(lambda: exporting(sam).join(0.1))
        assert sam.backend == "onnx"
        close(embedding.predict(**CLICK).logits, before)
    pid, niceness = child.wait_until_seen()
    assert pid != os.getpid() and niceness >= behind.NICENESS
    with vkrt.load(pico, pico_checkpoint, device="cpu") as sam:
        assert sam.backend == "onnx"


def test_what_lives_for_seconds_exports_nothing(
    child: Child,
    pico: str,
    pico_checkpoint: Path,
    photo: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = time.monotonic()
    with vkrt.load(pico, pico_checkpoint, device="cpu") as sam:
        clock = {"now": now + loading_sam2.BEHIND_AFTER_SECONDS - 5}
        monkeypatch.setattr(behind.time, "monotonic", lambda: clock["now"])
        sam.encode(photo).predict(**CLICK)
        assert not exporting(sam).started
        clock["now"] += 60
        assert not exporting(sam).started, "nobody uses it"
        sam.encode(photo).predict(**CLICK)
        assert exporting(sam).started
        monkeypatch.undo()


def test_without_memory_for_it_nothing_is_exported_yet(
    child: Child,
    pico: str,
    pico_checkpoint: Path,
    photo: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    memory, group = tmp_path / "meminfo", tmp_path / "group"
    monkeypatch.setattr(behind, "MEMORY", memory)
    monkeypatch.setattr(behind, "GROUP", group)
    assert behind.available_bytes() == float("inf")
    memory.write_text("MemFree: 1 kB\nMemAvailable:   9000000 kB\n")
    assert behind.available_bytes() == 9_000_000 * 1024
    group.mkdir()
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("1000\n")
    assert behind.available_bytes() == 9_000_000 * 1024
    (group / "memory.max").write_text("2000001000\n")
    assert behind.available_bytes() == 2e9
    size = pico_checkpoint.stat().st_size
    assert behind.needed_bytes(pico_checkpoint) == behind.BASE_BYTES + behind.COPIES * size > 2e9
    with vkrt.load(pico, pico_checkpoint, device="cpu", export="behind") as sam:
        assert sam.encode(photo) is not None and not exporting(sam).started
        (group / "memory.max").write_text("max\n")
        exporting(sam)._due = 0.0
        sam.encode(photo[::-1])
        assert exporting(sam).started


def test_a_stream_is_a_use_as_well(
    child: Child, pico: str, pico_checkpoint: Path, photo: np.ndarray
) -> None:
    child.does("time.sleep(30)")
    with vkrt.load(pico, pico_checkpoint, device="cpu") as sam:
        stream = sam.stream()
        stream.step(photo, [vkrt.Prompt(1, points=[[70, 40]])])
        exporting(sam)._due = 0.0
        stream.step(photo)
        assert exporting(sam).started


def test_a_closed_model_ends_its_export(child: Child, pico: str, pico_checkpoint: Path) -> None:
    child.does("time.sleep(60)")
    with vkrt.load(pico, pico_checkpoint, device="cpu", export="behind") as sam:
        child.wait_until_seen()
        assert len(child.left()) == 1, "one that is being written"
        background = exporting(sam)
    assert background.join(30) and child.left() == set() and sam.backend == "eager"


def test_closing_waits_for_a_switch_that_has_begun(
    child: Child, pico: str, pico_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = threading.Event(), threading.Event()
    create = backends.create

    def slow(options: Options) -> Any:
        if threading.current_thread() is not threading.main_thread():
            begun.set()
            time.sleep(0.3)
            ended.set()
        return create(options)

    monkeypatch.setattr(backends, "create", slow)
    with vkrt.load(pico, pico_checkpoint, device="cpu", export="behind"):
        until(begun.is_set)
    assert ended.is_set()


def test_a_model_that_nobody_holds_ends_its_export(
    child: Child, pico: str, pico_checkpoint: Path
) -> None:
    child.does("time.sleep(60)")
    sam = vkrt.load(pico, pico_checkpoint, device="cpu", export="behind")
    background = exporting(sam)
    child.wait_until_seen()
    del sam
    gc.collect()
    assert background.join(30) and child.left() == set()


def test_forbidding_exports_ends_one(
    child: Child, pico: str, pico_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "_forbidden", False)
    child.does("time.sleep(60)")
    with vkrt.load(pico, pico_checkpoint, device="cpu", export="behind") as sam:
        child.wait_until_seen()
        options.forbid_exports()
        assert exporting(sam).join(30) and child.left() == set() and sam.backend == "eager"


PARENT = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pico import NAME, PICO
import vkrt
from vkrt import catalog
from vkrt.export import behind
catalog._MODELS[NAME] = PICO
behind.CODE = sys.argv[2]
sam = vkrt.load(NAME, sys.argv[3], device="cpu", export="behind")
print("loaded", flush=True)
time.sleep(100)
"""


def test_an_export_ends_with_its_parent_and_the_next_one_starts_afresh(
    child: Child, pico: str, pico_checkpoint: Path
) -> None:
    child.does("time.sleep(90)")
    command = [sys.executable, "-c", PARENT, str(TESTS), behind.CODE, str(pico_checkpoint)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        pid, _ = child.wait_until_seen()
        assert len(child.left()) == 1
        parent.kill()
    until(lambda: not is_alive(pid))
    assert child.left() == set()
    child.does("pass")
    with vkrt.load(pico, pico_checkpoint, device="cpu", export="behind") as sam:
        until(lambda: exporting(sam).join(0.1))
        assert sam.backend == "onnx"


def is_alive(pid: int) -> bool:
    # Whoever adopts orphans here may not collect them.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("work", "words", "lasting"),
    [
        ("raise BackendError('outputs differ')", "outputs differ", True),
        ("raise KeyError('a bug')", "KeyError: 'a bug'", False),
        ("os._exit(9)", "ended with code 9", False),
    ],
)
def test_a_failed_export_is_told_once_and_not_tried_again(
    child: Child, pico: str, pico_checkpoint: Path, work: str, words: str, lasting: bool
) -> None:
    child.does(work)
    wanted = Exportable(pico, pico_checkpoint, None, "fp32", child.bundles.parent)
    with (
        pytest.warns(RuntimeWarning, match=f"PyTorch goes on running .*{words}") as told,
        vkrt.load(pico, pico_checkpoint, device="cpu", export="behind") as sam,
    ):
        until(lambda: exporting(sam).join(0.1))
        assert sam.backend == "eager"
    assert len(told) == 1
    refusal = wanted.refusal()
    assert refusal is not None and refusal.lasting == lasting and refusal.told
    with vkrt.load(pico, pico_checkpoint, device="cpu", export="behind") as sam:
        assert sam.runtimes.background is None


def test_a_refusal_of_old_is_no_export(
    child: Child, pico: str, pico_checkpoint: Path, photo: np.ndarray
) -> None:
    wanted = Exportable(pico, pico_checkpoint, None, "fp32", child.bundles.parent)
    write_refusal(wanted.folder, Refusal(pico, "weights", "no", versions()))
    with vkrt.load(pico, pico_checkpoint, device="cpu", export="behind") as sam:
        assert sam.runtimes.background is None and sam.encode(photo) is not None
    assert not child.seen.exists()


# The same without the copy.
REAL = """
import sys
sys.path.insert(0, {tests!r})
from pico import NAME, PICO
from vkrt import catalog
from vkrt.export import behind
catalog._MODELS[NAME] = PICO
# A busy machine must not starve it.
behind.NICENESS = 0
behind.main()
"""


@pytest.mark.slow
def test_a_real_export_runs_behind(
    child: Child,
    pico: str,
    pico_checkpoint: Path,
    photo: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(behind, "CODE", REAL.format(tests=str(TESTS)))
    with vkrt.load(pico, pico_checkpoint, device="cpu", export="behind") as sam:
        embedding = sam.encode(photo)
        wanted = embedding.predict(**CLICK).logits
        assert exporting(sam).join(900)
        assert sam.backend == "onnx"
        close(embedding.predict(**CLICK).logits, wanted)


def test_no_python_to_start_is_no_export(
    child: Child, pico: str, pico_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with vkrt.load(pico, pico_checkpoint, device="cpu", export="behind") as sam:
        assert sam.runtimes.background is None


def test_models_that_make_pictures_are_not_exported_by_loading(sd35_folder: Path) -> None:
    folder = sd35_folder / "pipeline"
    for way in ("first", "behind"):
        with pytest.raises(BackendError, match="run `vkrt export`"):
            vkrt.load(folder, export=way)
    with vkrt.load(folder, device="cpu", export="never") as engine:
        assert engine.name

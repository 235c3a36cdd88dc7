"""A child of os.fork that has a loaded model answers or refuses: it never hangs, nor at its end."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from vkrt.backends.fake import FakeBackend
from vkrt.errors import BackendError
from vkrt.forks import Home, HomeLock
from vkrt.memory.residency import Residency
from vkrt.stage import Stage

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

# A child that runs for longer hangs.
SECONDS = 60
SCRIPT = """
import os, signal, sys
import numpy as np
import vkrt
from pico import NAME, PICO
from vkrt import catalog

catalog._MODELS[NAME] = PICO
model, backend = sys.argv[1:]
photo = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)


def load():
    return vkrt.load(NAME, model, backend=backend, threads=2)


def fork(act):
    sys.stdout.flush()
    child = os.fork()
    if not child:
        signal.alarm(30)
        act()
        sys.stdout.flush()
        sys.exit(7)  # unlike os._exit, it ends what Python holds
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def attempt(act):
    try:
        act()
    except vkrt.BackendError as error:
        print("refused", str(error).startswith("this process was forked"))


sam = load()
sam.encode(photo).predict(points=[[70, 40]])
"""


def run(script: str, *arguments: object) -> str:
    """Return what a script of its own prints."""
    folder = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(SCRIPT) + textwrap.dedent(script)]
        + [str(argument) for argument in arguments],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "2"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("backend", ["eager", "onnx", "openvino"])
def test_a_child_refuses_what_its_parent_loaded(
    backend: str, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip({"eager": "torch", "onnx": "onnxruntime"}.get(backend, backend))
    model = request.getfixturevalue("pico_checkpoint" if backend == "eager" else "pico_bundle")
    printed = run(
        """
        embedding = sam.encode(photo)
        stream = sam.stream()
        track = sam.track([photo] * 3)

        def child():
            attempt(lambda: sam.encode(photo))
            attempt(lambda: embedding.predict(points=[[70, 40]]))
            attempt(lambda: stream.step(photo, [vkrt.Prompt(1, points=[[70, 40]])]))
            attempt(lambda: track.prompt(0, 1, points=[[70, 40]]))
            sam.close()

        fork(child)
        print("parent", embedding.predict(points=[[70, 40]]).masks.shape)
        """,
        model,
        backend,
    )
    assert printed.splitlines()[:4] == ["refused True"] * 4
    assert printed.splitlines()[-1] == "parent (3, 90, 120)"


@pytest.mark.parametrize("backend", ["eager", "onnx", "openvino"])
def test_a_child_may_load_anew(backend: str, request: pytest.FixtureRequest) -> None:
    pytest.importorskip({"eager": "torch", "onnx": "onnxruntime"}.get(backend, backend))
    model = request.getfixturevalue("pico_checkpoint" if backend == "eager" else "pico_bundle")
    printed = run(
        """
        expected = sam.encode(photo).predict(points=[[70, 40]]).logits

        def child():
            found = load().encode(photo).predict(points=[[70, 40]]).logits
            print(expected.std() > 0, np.abs(found - expected).max() < 1e-3)

        fork(child)
        """,
        model,
        backend,
    )
    assert printed.split() == ["True", "True"]


def test_a_child_refuses_a_clip_that_its_parent_tracks(pico_checkpoint: Path) -> None:
    printed = run(
        """
        track = sam.track([photo] * 6)
        track.prompt(0, 1, points=[[70, 40]])
        frames = track.propagate()
        next(frames)

        def child():
            attempt(lambda: next(frames))

        fork(child)
        print(len(list(frames)))
        """,
        pico_checkpoint,
        "eager",
    )
    assert printed.split() == ["refused", "True", "5"]


def test_a_lock_refuses_before_it_waits() -> None:
    lock, home = HomeLock("opened the clip"), Home()
    with lock, lock:
        assert home.is_here and lock.home.is_here
        child = os.fork()
        if not child:
            message = ""
            try:
                with lock:
                    pass
            except RuntimeError as error:
                message = str(error)
            os._exit("from the one that opened the clip" not in message or home.is_here)
        assert os.waitpid(child, 0)[1] == 0


def test_models_that_make_pictures_refuse_too() -> None:
    stages = {"vae_decoder": Stage("vae_decoder", None, (), ())}
    residency = Residency(stages, lambda name: FakeBackend())
    residency.program("vae_decoder")
    child = os.fork()
    if not child:
        refused = False
        try:
            residency.program("vae_decoder")
        except BackendError:
            refused = True
        os._exit(0 if refused else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert residency.program("vae_decoder")() == ()

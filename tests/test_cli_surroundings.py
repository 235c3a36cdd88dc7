"""The command in hostile surroundings: one line and an exit code, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import Answer, call
from PIL import Image

from vkrt.cli import main
from vkrt.cli.failures import explain
from vkrt.cli.signals import STOPS, Stopped, stop_by_exception
from vkrt.errors import OutputError
from vkrt.options import cache_folder

__all__ = ["call"]

resource = pytest.importorskip("resource")
VKRT = [sys.executable, "-m", "vkrt.cli"]


def run(*arguments: str, limit: int | None = None, **settings: str) -> subprocess.CompletedProcess:
    """Run the command in a process of its own, with an address space of so many bytes."""

    def confine() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    return subprocess.run(
        [*VKRT, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **settings},
        preexec_fn=confine,
    )


def is_one_line(text: str) -> bool:
    """Tell whether a command said one line, and that as itself."""
    return text.startswith("vkrt: ") and text.count("\n") == 1


# Signals.


@pytest.fixture
def untouched() -> Iterator[None]:
    """Have every signal as a shell gives it, even where this runs under nohup."""
    earlier = {number: signal.signal(number, signal.SIG_DFL) for number in STOPS}
    yield
    for number, handler in earlier.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOPS)
@pytest.mark.usefixtures("untouched")
def test_a_signal_becomes_an_exception(number: signal.Signals) -> None:
    with pytest.raises(Stopped) as stopped, stop_by_exception():
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert stopped.value.signal == number and not isinstance(stopped.value, Exception)
    assert signal.getsignal(number) is signal.SIG_DFL


def test_what_is_ignored_or_handled_stays_so() -> None:
    earlier = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_by_exception():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, earlier)


@pytest.mark.usefixtures("untouched")
def test_other_threads_handle_no_signals() -> None:
    seen: list[object] = []

    def inside() -> None:
        with stop_by_exception():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_stopped_track_leaves_nothing(tmp_path: Path, number: int, code: int) -> None:
    frames = tmp_path / "clip"
    frames.mkdir()
    rng = np.random.default_rng(0)
    for index in range(40):
        pixels = rng.integers(0, 255, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(frames / f"{index}.jpg")
    command = [*VKRT, "track", "clip", "--point", "9,9@0", "--out", "masks/", "--out", "o.json"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        # The outputs are claimed before the model is loaded.
        while len(list(tmp_path.glob(".vkrt-*"))) < 3 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        _, said = process.communicate()
    assert (process.returncode, is_one_line(said)) == (code, True), said
    assert [path.name for path in tmp_path.iterdir()] == ["clip"]


# stdout.


def test_a_stdout_that_cannot_say_a_name(tmp_path: Path) -> None:
    photo = tmp_path / "caf\u00e9.png"
    Image.new("RGB", (40, 30), (9, 99, 9)).save(photo)
    given = ("segment", str(photo), "--point", "9,9", "--out", str(tmp_path / "o.png"))
    plain = run(*given, PYTHONIOENCODING="ascii")
    assert plain.returncode == 0 and "caf\\xe9" in plain.stdout, plain.stderr
    as_json = run(*given, "--json", PYTHONIOENCODING="ascii")
    answer = Answer(as_json.returncode, as_json.stdout, as_json.stderr)
    assert answer.json["photo"]["file"] == str(photo)
    missing = run("segment", "\u732b.jpg", "--point", "9,9", PYTHONIOENCODING="latin-1")
    assert missing.returncode == 2 and is_one_line(missing.stderr) and "\\u732b" in missing.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_stdout_that_is_full() -> None:
    with open("/dev/full", "w") as full:
        found = subprocess.run([*VKRT, "models"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert found.returncode == 2 and is_one_line(found.stderr) and "No space left" in found.stderr


def test_a_stdout_that_is_closed() -> None:
    found = subprocess.run(
        ["/bin/sh", "-c", '"$0" -m vkrt.cli models --json >&-', sys.executable],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert (found.returncode, found.stderr) == (0, "")


# The cache folder.


@pytest.mark.parametrize("place", ["file", "file/below", "~nobody-is-called-so/x", "n" * 300])
def test_a_cache_that_cannot_be(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch, call: Callable[..., Answer]
) -> None:
    (tmp_path / "file").touch()
    path = place if place.startswith("~") else str(tmp_path / place)
    monkeypatch.setenv("VKRT_CACHE", path)
    with pytest.raises(OutputError, match="set VKRT_CACHE"):
        cache_folder()
    for command in (["doctor"], ["pull", "sam2.1-tiny", "--offline"], ["models"]):
        answer = call(*command)
        assert (answer.code, answer.out) == (2, "") and is_one_line(answer.err)
        assert "set VKRT_CACHE" in answer.err


def test_a_cache_that_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VKRT_CACHE", str(tmp_path / "not" / "yet"))
    assert cache_folder() == tmp_path / "not" / "yet"
    monkeypatch.setenv("VKRT_CACHE", "  ")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "vkrt"


# Memory.


@pytest.mark.parametrize("mebibytes", [100, 330])
def test_too_little_address_space(tmp_path: Path, mebibytes: int) -> None:
    Image.new("RGB", (40, 30), (9, 99, 9)).save(tmp_path / "p.png")
    given = ("segment", str(tmp_path / "p.png"), "--point", "9,9", "--out", str(tmp_path / "o.png"))
    found = run(*given, limit=mebibytes * 1024**2)
    assert found.returncode == 2 and is_one_line(found.stderr), found.stderr
    assert "address space" in found.stderr or "out of memory" in found.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["p.png"]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate"
            " memory: you tried to allocate 25165824 bytes. Error code 12 (Cannot allocate memory)"
        ),
        RuntimeError("Error in execution: bfc_arena.cc:360 Failed to allocate memory for 9"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        RuntimeError("can't start new thread"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_out_of_memory_by_any_library(error: Exception) -> None:
    line = explain(error)
    assert line is not None and line.startswith("out of memory")


def test_other_errors_are_not_taken_for_it() -> None:
    assert explain(RuntimeError("a bug")) is None and explain(KeyError("bad_alloc")) is None


def test_a_huge_input_size(tmp_path: Path, call: Callable[..., Answer]) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "p.png")
    for size in (4128, 320_000, 32 * 10**30):
        answer = call("segment", tmp_path / "p.png", "--point", "9,9", "--image-size", size)
        assert answer.code == 2 and is_one_line(answer.err) and "4096" in answer.err


@pytest.mark.usefixtures("untouched")
def test_main_returns_the_code_of_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(main.typer.main, "get_command", stop)
    assert main.main(["models"]) == 143

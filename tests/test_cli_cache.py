"""What commands do about exports, and `vkrt cache`: what the folder holds, and what of it goes."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Answer, call
from filelock import FileLock
from PIL import Image
from toys import edit, write_toy

import vkrt
from vkrt import backends, temporary
from vkrt.bundle import building, is_bundle
from vkrt.cli.work_bar import working
from vkrt.errors import BackendError
from vkrt.export import cache
from vkrt.export.cache_entries import KINDS, list_entries
from vkrt.export.prune import lock_of
from vkrt.export.refusals import Refusal, versions, write_refusal
from vkrt.weights import hub

__all__ = ["call"]


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, photo: np.ndarray) -> Path:
    """Return an empty cache folder; "auto" means what it means for a user with photo.png."""
    monkeypatch.setenv("VKRT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VKRT_BACKEND", raising=False)
    monkeypatch.delenv("VKRT_EXPORT", raising=False)
    monkeypatch.setattr(backends, "_GPU_FILES", ())
    monkeypatch.chdir(tmp_path)
    Image.fromarray(photo).save("photo.png")
    return tmp_path / "cache"


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch, pico_bundle: Path) -> list[str]:
    """Let an export copy a ready bundle, and return the list of models exported so far."""
    made: list[str] = []

    def export_weights(name: str, source: Path, folder: Path, *more: Any, **_: Any) -> None:
        started = more[2]
        started(name)
        made.append(name)
        with building(folder, force=True) as part:
            shutil.copytree(pico_bundle, part, dirs_exist_ok=True)

    monkeypatch.setattr(cache, "export_weights", export_weights)
    return made


# Commands that segment.


@pytest.fixture
def segment(call: Callable[..., Answer], pico: str, pico_checkpoint: Path) -> Callable[..., Answer]:
    given = ("segment", "photo.png", "--point", "70,40", "--json", "--model", pico)
    return lambda *more: call(*given, "--checkpoint", pico_checkpoint, *more)


def test_a_command_answers_at_once_and_says_once_what_is_faster(
    segment: Callable[..., Answer], exports: list[str], pico_checkpoint: Path
) -> None:
    first = segment()
    assert first.code == 0 and first.json["backend"] == "eager"
    assert first.err.count("\n") == 1 and "--export" in first.err and "vkrt export" in first.err
    assert str(pico_checkpoint) in first.err
    again = segment()
    assert again.json["backend"] == "eager" and again.err == "" and not exports


def test_a_command_exports_when_told_to(
    segment: Callable[..., Answer], exports: list[str], pico: str
) -> None:
    asked = segment("--export")
    assert (asked.json["backend"], exports) == ("onnx", [pico]) and "once" in asked.err
    later = segment()
    assert (later.json["backend"], later.err) == ("onnx", "") and exports == [pico]
    scores = [mask["score"] for mask in later.json["masks"]]
    assert scores == [mask["score"] for mask in asked.json["masks"]]


@pytest.mark.parametrize(
    ("said", "backend", "words"),
    [
        ("never", "eager", ""),
        ("forbid", "eager", ""),
        ("first", "onnx", "exporting"),
        ("behind", "eager", "--export"),
    ],
)
def test_the_environment_speaks_for_commands(
    segment: Callable[..., Answer],
    exports: list[str],
    monkeypatch: pytest.MonkeyPatch,
    said: str,
    backend: str,
    words: str,
) -> None:
    monkeypatch.setenv("VKRT_EXPORT", said)
    answer = segment()
    assert answer.json["backend"] == backend and words in answer.err
    assert bool(answer.err) == bool(words) and bool(exports) == (backend == "onnx")


def test_a_packaged_bundle_needs_no_advice(call: Callable[..., Answer]) -> None:
    answer = call("segment", "photo.png", "--point", "70,40", "--json")
    assert (answer.json["model"], answer.json["backend"]) == ("sam2.1-nano", "onnx")
    assert answer.err == ""


def test_a_command_tells_once_why_there_is_no_bundle(
    segment: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch, call: Callable[..., Answer]
) -> None:
    def export_weights(*_: Any, **__: Any) -> None:
        raise BackendError("outputs differ")

    monkeypatch.setattr(cache, "export_weights", export_weights)
    with pytest.warns(RuntimeWarning, match="outputs differ"):
        assert segment("--export").json["backend"] == "eager"
    assert "outputs differ" in segment().err and segment().err == ""
    refused = segment("--backend", "onnx")
    assert refused.code == 2 and "vkrt cache clear --refusals" in refused.err
    (told,) = call("doctor", "--json").json["exports"]["refused"]
    assert told["reason"] == "outputs differ"
    shown = " ".join(call("doctor").out.split())
    assert "outputs differ" in shown and "vkrt cache clear --refusals" in shown
    assert "1 deleted" in call("cache", "clear", "--refusals").out
    assert call("doctor", "--json").json["exports"]["refused"] == []


def test_tracking_exports_when_told_to(
    call: Callable[..., Answer], exports: list[str], pico: str, pico_checkpoint: Path
) -> None:
    Path("clip").mkdir()
    for index in range(2):
        shutil.copy("photo.png", f"clip/{index}.png")
    given = ("track", "clip", "--point", "70,40", "--json", "--model", pico)
    given = (*given, "--checkpoint", str(pico_checkpoint))
    answer = call(*given)
    assert (answer.json["backend"], exports) == ("eager", []) and "--export" in answer.err
    assert (call(*given, "--export").json["backend"], exports) == ("onnx", [pico])


def test_doctor_tells_how_checkpoints_run(
    call: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    for said, words in (
        ("auto", "PyTorch at once"),
        ("first", "exported before they run"),
        ("forbid", "exports are forbidden"),
        ("sometimes", "VKRT_EXPORT must be one of"),
    ):
        monkeypatch.setenv("VKRT_EXPORT", said)
        assert words in " ".join(call("doctor").out.split())


def test_pull_exports_as_well(
    call: Callable[..., Answer],
    exports: list[str],
    pico: str,
    pico_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
) -> None:
    monkeypatch.setattr(hub, "pull", lambda *_, **__: pico_checkpoint)
    assert call("pull", pico).out == f"{pico_checkpoint}\n" and not exports
    answer = call("pull", pico, "--export", "--json")
    assert answer.err == "" and exports == [pico]
    assert answer.json["file"] == str(pico_checkpoint) and is_bundle(answer.json["bundle"])
    assert call("pull", pico, "--export").out == f"{pico_checkpoint}\n{answer.json['bundle']}\n"
    assert exports == [pico]
    assert vkrt.load(pico, pico_checkpoint, device="cpu").backend == "onnx"
    refused = call("pull", "sd3.5-medium", "--export")
    assert refused.code == 2 and "vkrt export" in refused.err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_what_is_done_and_how_long_it_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with working("loading") as report:
        assert report is None
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    with working("loading") as report:
        assert report is not None
        report("reading [bold]weights.pt", 0.0)
        time.sleep(0.15)
        report("image_encoder: tracing", 0.25)
        time.sleep(0.15)
    text = shown.getvalue()
    assert "reading [bold]weights.pt" in text and "image_encoder: tracing" in text
    assert "left" in text


# The folder.


@pytest.fixture
def filled(folder: Path) -> Path:
    """Return a cache with one thing of every kind."""
    bundles = folder / "bundles"
    bundles.mkdir(parents=True)
    for name, model, used in (("old", "sam2.1-nano", 1000), ("new", "sam2.1-tiny", 2000)):
        write_toy(bundles / name)
        edit(bundles / name, lambda content, model=model: content.update(model=model))
        os.utime(bundles / name / "manifest.json", (used, used))
    write_refusal(bundles / "no", Refusal("sam2.1-tiny", "w.pt", "outputs differ", versions()))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "sam2.1_hiera_tiny.pt").write_bytes(b"12345")
    blobs = folder / "hub" / "models--facebook--sam2.1-hiera-small" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "a").write_bytes(b"1234567")
    (blobs.parent / "link").symlink_to(blobs / "a")
    (folder / "files").mkdir()
    (folder / "files" / "x.json").write_text("{}")
    return folder


def kinds(folder: Path) -> list[tuple[str, str]]:
    return [(entry.kind, entry.name) for entry in list_entries(folder)]


def test_the_list_says_what_and_how_large_and_when(
    call: Callable[..., Answer], filled: Path
) -> None:
    report = call("cache", "list", "--json").json
    found = {entry["name"]: entry for entry in report["entries"]}
    assert report["cache"] == str(filled)
    assert report["bytes"] == sum(entry["bytes"] for entry in report["entries"])
    order = [entry["name"] for entry in report["entries"]]
    assert order[:2] == ["new", "old"] and order[-1] == "files"
    assert (found["old"]["model"], found["old"]["used"]) == ("sam2.1-nano", 1000.0)
    inside = sum(file.stat().st_size for file in (filled / "bundles" / "old").iterdir())
    assert found["old"]["bytes"] == inside > 100
    assert found["sam2.1_hiera_tiny.pt"]["bytes"] == 5
    small = found["models--facebook--sam2.1-hiera-small"]
    assert small["model"] == "facebook/sam2.1-hiera-small" and 7 <= small["bytes"] < 200
    assert found["no.refused.json"]["note"] == "outputs differ"
    assert {entry["kind"] for entry in report["entries"]} == set(KINDS) - {"unfinished"}
    shown = " ".join(call("cache", "list").out.split())
    assert "sam2.1-nano" in shown and "1970-01-01" in shown and "outputs differ" in shown


@pytest.mark.parametrize(
    ("arguments", "gone"),
    [
        (["old"], {"old"}),
        (["sam2.1-tiny"], {"new", "no.refused.json"}),
        (["SAM2.1_nano"], {"old"}),
        (["sam2.1_hiera_tiny.pt"], {"sam2.1_hiera_tiny.pt"}),
        (["--refusals"], {"no.refused.json"}),
        (["models--facebook--sam2.1-hiera-small"], {"models--facebook--sam2.1-hiera-small"}),
    ],
)
def test_what_is_named_goes_and_nothing_else(
    call: Callable[..., Answer], filled: Path, arguments: list[str], gone: set[str]
) -> None:
    before = {name for _, name in kinds(filled)}
    answer = call("cache", "clear", *arguments, "--json")
    assert answer.code == 0 and set(answer.json["deleted"]) == gone and answer.json["kept"] == {}
    assert {name for _, name in kinds(filled)} == before - gone


def test_everything_goes(call: Callable[..., Answer], filled: Path) -> None:
    assert "6 deleted" in call("cache", "clear", "--all").out and kinds(filled) == []
    assert call("cache", "list", "--json").json["entries"] == []
    assert "0 deleted" in call("cache", "clear", "--all").out


@pytest.mark.parametrize("arguments", [[], ["old", "--all"], ["--refusals", "--all"], ["nothing"]])
def test_what_to_delete_must_be_said(
    call: Callable[..., Answer], filled: Path, arguments: list[str]
) -> None:
    before = kinds(filled)
    answer = call("cache", "clear", *arguments)
    assert answer.code == 2 and answer.err.count("\n") == 1 and kinds(filled) == before


USER = """
import sys
from pathlib import Path
from vkrt.export.prune import mark_used
mark_used(Path(sys.argv[1]))
print("used", flush=True)
sys.stdin.read()
"""


def test_what_somebody_makes_or_uses_stays(call: Callable[..., Answer], filled: Path) -> None:
    pytest.importorskip("fcntl")
    used, made = filled / "bundles" / "old", filled / "bundles" / "new"
    command = [sys.executable, "-c", USER, str(used)]
    user = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert user.stdout is not None and user.stdout.readline() == "used\n"
    with FileLock(lock_of(made)), building(filled / "bundles" / "next") as part:
        (part / "half").touch()
        answer = call("cache", "clear", "--all", "--json")
        assert {"old", "new", part.name} == set(answer.json["kept"])
        assert (part / "half").exists() and is_bundle(used) and is_bundle(made)
        shutil.copytree(made, part, dirs_exist_ok=True)
        (part / "half").unlink()
    user.communicate("")
    assert set(call("cache", "clear", "--all", "--json").json["deleted"]) == {"old", "new", "next"}


def test_what_killed_processes_left_is_not_listed(
    filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fcntl")
    # A process looks once, and this one did when it filled the cache.
    monkeypatch.setattr(temporary, "_swept", set())
    left = filled / "bundles" / ".vkrt-0123456789ab.part"
    left.mkdir()
    assert all(kind != "unfinished" for kind, _ in kinds(filled)) and not left.exists()


@pytest.mark.parametrize("command", ["list", "clear"])
def test_help_has_an_example_and_json(call: Callable[..., Answer], command: str) -> None:
    answer = call("cache", command, "--help")
    assert answer.code == 0 and f"Example: vkrt cache {command}" in answer.out
    assert "--json" in answer.out
    assert command in call("cache", "--help").out

"""The command line: what it writes and prints, and one line for whatever goes wrong."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Answer, call
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import vkrt
from vkrt import catalog
from vkrt.cli import doctor, prompts
from vkrt.errors import PromptError
from vkrt.kernels import host_attention
from vkrt.media import native
from vkrt.media.masks import mask_to_logits
from vkrt.media.overlay import draw_overlay
from vkrt.weights import hub

__all__ = ["call"]

MODEL = "sam2.1-nano"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo: np.ndarray) -> Path:
    """Return the current folder, which holds photo.png and nothing else."""
    folder = tmp_path / "here"
    folder.mkdir()
    Image.fromarray(photo).save(folder / "photo.png")
    monkeypatch.chdir(folder)
    return folder


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def read(path: str | Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def bounds(mask: np.ndarray) -> list[int] | None:
    """Return x, y, width, height of a mask, the slow and plain way."""
    ys, xs = np.nonzero(mask)
    if not len(ys):
        return None
    return [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]


# What a segmentation gives.


@pytest.mark.parametrize(
    ("arguments", "prompt", "multimask"),
    [
        (["--point", "70,40"], {"points": [[70, 40]], "labels": [1]}, True),
        (
            ["--point", "70,40", "--negative", "5,80.5"],
            {"points": [[70, 40], [5, 80.5]], "labels": [1, 0]},
            False,
        ),
        (["--box", "45,15,95,65"], {"box": [45, 15, 95, 65]}, False),
        (
            ["--negative", "5,5", "--box", "45,15,95,65"],
            {"points": [[5, 5]], "labels": [0], "box": [45, 15, 95, 65]},
            False,
        ),
    ],
)
def test_mask_is_the_best_of_predict(
    call: Callable[..., Answer],
    here: Path,
    nano_checkpoint: Path,
    photo: np.ndarray,
    arguments: list[str],
    prompt: dict[str, Any],
    multimask: bool,
) -> None:
    answer = call(
        "segment", "photo.png", "--checkpoint", nano_checkpoint, "--out", "m.png", *arguments
    )
    assert answer.code == 0 and answer.err == ""
    wanted = vkrt.load(MODEL, nano_checkpoint).encode(photo).predict(**prompt, multimask=multimask)
    written = read("m.png")
    assert written.dtype == np.uint8 and written.shape == photo.shape[:2]
    np.testing.assert_array_equal(written, wanted.masks[wanted.best] * np.uint8(255))
    assert files(here) == {"photo.png", "m.png"}


def test_json_says_what_the_files_hold(
    call: Callable[..., Answer], here: Path, nano_checkpoint: Path
) -> None:
    answer = call(
        *(
            "segment",
            "photo.png",
            "--checkpoint",
            nano_checkpoint,
            "--point",
            "70,40",
            "--all-masks",
        ),
        *("--out", "m.png", "--overlay", "seen.jpg", "--json"),
    )
    assert answer.code == 0 and answer.err == ""
    report = answer.json
    assert report["model"] == MODEL and report["device"] == "cpu"
    assert report["photo"] == {"file": "photo.png", "width": 120, "height": 90}
    assert report["overlay"] == "seen.jpg" and set(report["ms"]) == {"load", "encode", "predict"}
    assert [mask["file"] for mask in report["masks"]] == ["m-0.png", "m-1.png", "m-2.png"]
    scores = [mask["score"] for mask in report["masks"]]
    assert scores == sorted(scores, reverse=True)
    for mask in report["masks"]:
        written = read(mask["file"]) > 0
        assert mask["area"] == written.sum()
        assert mask["box"] == bounds(written)
        assert 0 <= mask["stability"] <= 1 and np.isfinite(mask["magnitude"])
    assert files(here) == {"photo.png", "seen.jpg", "m-0.png", "m-1.png", "m-2.png"}


def test_mask_is_a_prompt(
    call: Callable[..., Answer], here: Path, nano_checkpoint: Path, photo: np.ndarray
) -> None:
    rough = np.zeros(photo.shape[:2], bool)
    rough[15:65, 45:95] = True
    Image.fromarray(rough).save("rough.png")
    given = ("segment", "photo.png", "--checkpoint", nano_checkpoint, "--mask", "rough.png")
    assert call(*given, "--out", "m.png").code == 0
    sam = vkrt.load(MODEL, nano_checkpoint)
    logits = mask_to_logits(rough, sam.config.mask_size)
    wanted = sam.encode(photo).predict(mask=logits, multimask=False)
    np.testing.assert_array_equal(read("m.png") > 0, wanted.masks[wanted.best])


def test_several_boxes_are_several_objects(
    call: Callable[..., Answer], here: Path, nano_checkpoint: Path, photo: np.ndarray
) -> None:
    boxes, spots = [[45, 15, 95, 65], [5, 50, 30, 85]], [[[70, 40]], [[20, 60]]]
    given = ["segment", "photo.png", "--checkpoint", nano_checkpoint, "--json"]
    for box, spot in zip(boxes, spots, strict=True):
        given += ["--box", ",".join(map(str, box)), "--point", ",".join(map(str, spot[0]))]
    answer = call(*given, "--out", "m.png", "--overlay", "seen.png")
    assert answer.code == 0 and answer.err == ""
    embedding = vkrt.load(MODEL, nano_checkpoint).encode(photo)
    wanted = embedding.predict(spots, [[1], [1]], boxes, multimask=False)
    assert (wanted.masks[0] != wanted.masks[1]).any()
    for index, found in enumerate(answer.json["masks"]):
        assert (found["file"], found["object"]) == (f"m-{index}.png", index)
        np.testing.assert_array_equal(read(found["file"]) > 0, wanted.masks[index, 0])
        assert found["area"] == wanted.areas[index, 0]
        assert found["box"] == bounds(wanted.masks[index, 0])
    drawn = draw_overlay(photo, wanted.masks[:, 0], spots, [[1], [1]], boxes)
    np.testing.assert_array_equal(read("seen.png"), np.asarray(drawn))
    every = call(*given, "--all-masks", "--out", "a.png").json["masks"]
    names = [f"a-{obj}-{proposal}.png" for obj in range(2) for proposal in range(3)]
    assert [found["file"] for found in every] == names
    assert [found["object"] for found in every] == [0, 0, 0, 1, 1, 1]
    scores = [found["score"] for found in every]
    assert scores[:3] == sorted(scores[:3], reverse=True) and len(set(scores)) == 6


def test_several_masks_are_several_objects(
    call: Callable[..., Answer], here: Path, nano_checkpoint: Path, photo: np.ndarray
) -> None:
    rough = np.zeros((2, *photo.shape[:2]), bool)
    rough[0, 15:65, 45:95], rough[1, 60:80, 5:30] = True, True
    Image.fromarray(rough[0]).save("white.png")
    Image.fromarray(rough[1].astype(np.uint8)).save("one.png")  # 0 and 1, as a label map
    given = ["segment", "photo.png", "--checkpoint", nano_checkpoint, "--out", "m.png"]
    assert call(*given, "--mask", "white.png", "--mask", "one.png").code == 0
    embedding = vkrt.load(MODEL, nano_checkpoint).encode(photo)
    wanted = embedding.predict(mask=rough, multimask=False).masks[:, 0]
    assert (wanted[0] != wanted[1]).any()
    for index in range(2):
        np.testing.assert_array_equal(read(f"m-{index}.png") > 0, wanted[index])


def test_overlay_shows_the_photo(
    call: Callable[..., Answer], here: Path, nano_checkpoint: Path, photo: np.ndarray
) -> None:
    given = ("segment", "photo.png", "--checkpoint", nano_checkpoint, "--box", "45,15,95,65")
    assert call(*given, "--overlay", "seen.png").code == 0
    seen = read("seen.png")
    assert seen.shape == photo.shape and (seen != photo).any()
    assert files(here) == {"photo.png", "seen.png"}


def test_without_any_output_the_mask_goes_here(
    call: Callable[..., Answer], here: Path, nano_checkpoint: Path
) -> None:
    given = ("segment", here / "photo.png", "--checkpoint", nano_checkpoint, "--point", "70,40")
    answer = call(*given)
    assert answer.code == 0 and "photo.mask.png" in answer.out and "120x90" in answer.out
    assert files(here) == {"photo.png", "photo.mask.png"}


def test_json_alone_writes_no_file(
    call: Callable[..., Answer], here: Path, nano_checkpoint: Path
) -> None:
    given = ("segment", "photo.png", "--checkpoint", nano_checkpoint, "--point", "70,40", "--json")
    assert call(*given).json["masks"][0]["file"] is None
    assert files(here) == {"photo.png"}


def test_options_reach_the_model(
    call: Callable[..., Answer], here: Path, nano_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, received = vkrt.load, {}

    def load(name: str, **settings: Any) -> Any:
        received.update(settings, name=name)
        return real(name, **settings)

    monkeypatch.setattr(vkrt, "load", load)
    answer = call(
        *("segment", "photo.png", "--checkpoint", nano_checkpoint, "--point", "70,40", "--json"),
        *("--model", "SAM2.1_nano", "--image-size", "128", "--threads", "2"),
        *("--backend", "eager", "--device", "cpu", "--precision", "fp32"),
    )
    assert answer.code == 0
    assert received == {
        **{"name": "SAM2.1_nano", "checkpoint": nano_checkpoint, "image_size": 128, "threads": 2},
        **{"backend": "eager", "device": "cpu", "precision": "fp32"},
        **{"export": "never", "report": None},
    }


# What goes wrong: one line, exit code 2, nothing left behind.


def png_header(width: int, height: int) -> bytes:
    """Return a PNG whose header states a size and which holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    empty = chunk(b"IDAT", zlib.compress(b""))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + empty + chunk(b"IEND", b"")


def prepare_bad_files(here: Path) -> None:
    """Write the damaged inputs of BAD."""
    whole = (here / "photo.png").read_bytes()
    (here / "empty.png").write_bytes(b"")
    (here / "cut.png").write_bytes(whole[: len(whole) // 2])
    (here / "huge.png").write_bytes(png_header(50_000, 40_000))
    (here / "text.png").write_text("no picture")
    Image.new("L", (60, 45)).save(here / "small.png")


BAD = {
    "no prompt": (["photo.png"], "name the object"),
    "a point outside": (["photo.png", "--point", "121,40"], "outside the photo"),
    "a negative coordinate": (["photo.png", "--point", "-5,40"], "outside the photo"),
    "NaN": (["photo.png", "--point", "nan,40"], "--point wants finite numbers"),
    "infinity": (["photo.png", "--negative", "inf,40"], "--negative wants finite numbers"),
    "one number": (["photo.png", "--point", "40"], "--point wants finite numbers X,Y"),
    "words": (["photo.png", "--point", "here,there"], "'here,there'"),
    "three corners": (["photo.png", "--box", "1,2,3"], "--box wants finite numbers X0,Y0,X1,Y1"),
    "a box inside out": (["photo.png", "--box", "50,50,20,20"], "x1 > x0"),
    "a box outside": (["photo.png", "--box", "200,200,300,300"], "outside the photo"),
    "a point for two boxes": (
        ["photo.png", "--box", "1,1,9,9", "--box", "20,20,40,40", "--point", "5,5"],
        "give --point 2 times",
    ),
    "two masks for three boxes": (
        ["photo.png", *["--box", "1,1,9,9"] * 3, *["--mask", "small.png"] * 2],
        "give --mask 3 times",
    ),
    "one box of two outside": (
        ["photo.png", "--box", "1,1,9,9", "--box", "200,200,300,300"],
        "box 2 of 2 (200, 200, 300, 300) is outside",
    ),
    "no photo": (["nowhere.png", "--point", "1,1"], "nowhere.png"),
    "a folder": ([".", "--point", "1,1"], "folder"),
    "an empty file": (["empty.png", "--point", "1,1"], "empty.png"),
    "a truncated file": (["cut.png", "--point", "1,1"], "cut.png"),
    "2 gigapixels": (["huge.png", "--point", "1,1"], "50000"),
    "not a picture": (["text.png", "--point", "1,1"], "text.png"),
    "a mask of another size": (["photo.png", "--mask", "small.png"], "60x45"),
    "a mask that is none": (["photo.png", "--mask", "text.png"], "text.png"),
    "an unknown model": (["photo.png", "--point", "1,1", "--model", "sam9"], "unknown model"),
    "another size": (["photo.png", "--point", "1,1", "--model", "sam2.1-tiny"], "sam2.1-tiny"),
    "an odd input size": (["photo.png", "--point", "1,1", "--image-size", "100"], "32"),
    "no device": (["photo.png", "--point", "1,1", "--device", "cuda:99"], "cuda:99"),
    "no backend": (["photo.png", "--point", "1,1", "--backend", "abacus"], "backend"),
    "no precision": (["photo.png", "--point", "1,1", "--precision", "fp3"], "precision"),
    "no threads": (["photo.png", "--point", "1,1", "--threads", "0"], "threads"),
    "no number": (["photo.png", "--point", "1,1", "--threads", "two"], "--threads"),
    "an unknown option": (["photo.png", "--pint", "1,1"], "--pint"),
    "no checkpoint": (["photo.png", "--point", "1,1", "--checkpoint", "no.pt"], "no.pt"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input_gets_one_line(
    call: Callable[..., Answer], here: Path, nano_checkpoint: Path, case: str
) -> None:
    prepare_bad_files(here)
    before = files(here)
    arguments, words = BAD[case]
    answer = call("segment", "--checkpoint", nano_checkpoint, "--out", "m.png", *arguments)
    assert answer.code == 2 and answer.out == ""
    assert answer.err.startswith("vkrt: ") and answer.err.count("\n") == 1
    assert words in answer.err
    assert files(here) == before


UNWRITABLE = {
    "no folder": (["--out", "nowhere/m.png"], "nowhere"),
    "a file as folder": (["--out", "photo.png/m.png"], "photo.png"),
    "a folder": (["--overlay", "folder.png"], "folder"),
    "no such process": (["--out", "/proc/nope/m.png"], "/proc/nope"),
    "no picture format": (["--overlay", "seen.txt"], ".jpg"),
    "a lossy mask": (["--out", "m.jpg"], ".png"),
    "the photo": (["--out", "../here/photo.png"], "input"),
    "the photo too": (["--overlay", "photo.png"], "input"),
    "one file twice": (["--out", "m.png", "--overlay", "m.png"], "another output"),
    "a mask's name": (["--out", "m.png", "--overlay", "m-1.png", "--all-masks"], "another output"),
}


@pytest.mark.parametrize("case", list(UNWRITABLE))
def test_bad_output_is_told_before_the_model_loads(
    call: Callable[..., Answer], here: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(vkrt, "load", load)
    (here / "folder.png").mkdir()
    before, original = files(here), (here / "photo.png").read_bytes()
    arguments, words = UNWRITABLE[case]
    answer = call("segment", "photo.png", "--point", "70,40", *arguments)
    assert answer.code == 2 and answer.err.count("\n") == 1
    assert answer.err.startswith("vkrt: ") and words in answer.err
    assert files(here) == before and (here / "photo.png").read_bytes() == original


def test_a_failed_run_keeps_an_older_mask(
    call: Callable[..., Answer], here: Path, monkeypatch: pytest.MonkeyPatch, nano_checkpoint: Path
) -> None:
    (here / "m.png").write_bytes(b"older")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    given = ("segment", "photo.png", "--checkpoint", nano_checkpoint, "--point", "70,40")
    answer = call(*given, "--out", "m.png")
    assert answer.code == 2 and "No space left" in answer.err and answer.err.count("\n") == 1
    assert (here / "m.png").read_bytes() == b"older" and files(here) == {"photo.png", "m.png"}


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 2, "'vkrt[torch]'"),
        (MemoryError(), 2, "out of memory"),
        (PermissionError(13, "Permission denied", "x.pt"), 2, "Permission denied: x.pt"),
        (PromptError("two\nlines"), 2, "two lines"),
    ],
)
def test_failures_become_one_line(
    call: Callable[..., Answer],
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    words: str,
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(vkrt, "load", load)
    answer = call("segment", "photo.png", "--point", "70,40", "--out", "m.png")
    assert answer.code == code and words in answer.err and answer.err.count("\n") == 1
    assert files(here) == {"photo.png"}


def test_a_bug_stays_a_bug(
    call: Callable[..., Answer], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vkrt, "load", lambda *_, **__: {}["nothing"])
    with pytest.raises(KeyError):
        call("segment", "photo.png", "--point", "70,40")


@given(
    st.text(max_size=20) | st.lists(st.floats(), max_size=5).map(lambda v: ",".join(map(str, v)))
)
def test_typed_numbers_are_finite_or_refused(text: str) -> None:
    try:
        values = prompts.numbers("--point", text, "X,Y", "1,2")
    except PromptError as error:
        assert "\n" not in str(error)
    else:
        assert len(values) == 2 and np.isfinite(values).all()


# models, doctor, pull and help.


def test_models_lists_the_catalog(
    call: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VKRT_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    by_hand = tmp_path / "checkpoints" / "sam2.1_hiera_tiny.pt"
    by_hand.parent.mkdir()
    by_hand.touch()
    found = {model["name"]: model for model in call("models", "--json").json}
    assert list(found) == [*catalog.names(), *catalog.picture_models()]
    assert found["sam2.1-tiny"]["file"] == str(by_hand)
    assert found["sam2.1-tiny"]["hub_id"] == "facebook/sam2.1-hiera-tiny"
    assert found["sam2-large"]["image_size"] == 1024
    assert [name for name, model in found.items() if model["bundle"]] == [MODEL]
    shown = call("models").out
    assert all(name in shown for name in catalog.names()) and "vkrt pull" in shown


def test_doctor_tells_what_would_run(call: Callable[..., Answer]) -> None:
    answer = call("doctor", "--json")
    report = answer.json
    assert answer.code == 0 and report["would_run"]["backend"] == "eager"
    assert report["cpu"]["cores"] >= 1 and report["memory_bytes"] > 2**28
    assert report["torch"]["threads"] >= 1 and report["vkrt"] == vkrt.__version__
    assert "CPUExecutionProvider" in report["onnxruntime"]["providers"]
    assert report["openvino"] and report["openvino"][:4].isdecimal()
    shown = call("doctor")
    assert shown.code == 0 and "eager on" in shown.out and report["cpu"]["model"] in shown.out
    assert report["onnxruntime"]["version"] in shown.out and "VKRT_BACKEND" in shown.out
    wanted = {"name": MODEL, "present": True, "bundle": False, "backend": "eager"}
    assert report["demo_model"] == wanted
    assert "packaged, eager runs its weights" in shown.out


def test_doctor_says_that_auto_takes_no_openvino(
    call: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = doctor.installed
    monkeypatch.setattr(
        doctor, "installed", lambda name: "2026.1" if name == "openvino" else real(name)
    )
    assert doctor.describe_openvino(doctor.examine()["openvino"]) == (
        "2026.1; auto never takes it, even where it is faster: --backend openvino does"
    )
    assert "auto never takes it" in " ".join(call("doctor").out.split())


def test_doctor_tells_what_auto_takes(
    call: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VKRT_BACKEND")
    monkeypatch.setattr("vkrt.backends.on_gpu", lambda device: False)
    report = call("doctor", "--json").json
    run = report["would_run"]
    assert run["backend"] == "onnx" and "onnxruntime is installed" in run["why"]
    assert [tried["backend"] for tried in run["tried"]] == ["onnx", "eager", "openvino"]
    demo = report["demo_model"]
    assert (demo["bundle"], demo["backend"]) == (True, "onnx"), "run `make bundle`"
    assert doctor.describe_demo_model(demo) == "packaged, onnx runs its bundle"


def test_doctor_tells_what_is_wrong_with_the_demo_model(
    call: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("VKRT_BACKEND")
    monkeypatch.setattr("vkrt.backends.on_gpu", lambda device: False)
    (tmp_path / "manifest.json").write_text("{")
    damaged = replace(catalog.find(MODEL), packaged_bundle=tmp_path)
    monkeypatch.setitem(catalog._MODELS, MODEL, damaged)
    assert "is damaged" in call("doctor", "--json").json["demo_model"]["broken"]
    assert "reinstall" in " ".join(call("doctor").out.split())


def test_doctor_without_torch(call: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vkrt.backends.find_spec", lambda name: None)
    monkeypatch.setattr(doctor, "installed", lambda package: None)
    answer = call("doctor", "--json")
    assert answer.code == 1 and answer.json["would_run"]["backend"] is None
    commands = {item["what"]: item["command"] for item in answer.json["missing"]}
    assert commands["torch"] == "pip install 'vkrt[torch]'"
    assert commands["onnxruntime"] == "pip install 'vkrt[cpu]'"
    assert commands["openvino"] == "pip install 'vkrt[openvino]'"
    shown = call("doctor")
    assert shown.code == 1 and "NOTHING" in shown.out and commands["torch"] in shown.out


def test_doctor_is_loud_about_missing_cpp(
    call: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_attention, "IS_NATIVE", False)
    monkeypatch.setattr(native, "available", lambda: False)
    monkeypatch.setattr(native, "why_missing", lambda: "no compiler was there")
    answer = call("doctor")
    assert "no compiler was there" in answer.out and "C++" in answer.err
    assert "fp32 on numpy, bf16 on numpy" in answer.out
    missing = call("doctor", "--json").json["missing"]
    assert any("compiler" in item["command"] for item in missing)


def test_pull_prints_the_file(
    call: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pull(model: catalog.Model, cache: Path | None = None, offline: bool = False) -> Path:
        assert cache == tmp_path and not offline
        file = tmp_path / str(model.checkpoint)
        file.write_bytes(b"1234")
        return file

    monkeypatch.setattr(hub, "pull", pull)
    file = tmp_path / "sam2.1_hiera_tiny.pt"
    assert call("pull", "sam2.1-tiny", "--cache", tmp_path).out == f"{file}\n"
    answer = call("pull", "sam2.1-tiny", "--cache", tmp_path, "--json")
    assert answer.json == {"model": "sam2.1-tiny", "file": str(file), "bytes": 4}


def test_pull_offline_names_the_file(
    call: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "import_hub", lambda: None)
    answer = call("pull", "sam2.1-tiny", "--offline", "--cache", tmp_path)
    assert answer.code == 2 and answer.err.count("\n") == 1
    assert "sam2.1_hiera_tiny.pt" in answer.err and str(tmp_path) in answer.err
    assert call("pull", "sam9").code == 2


@pytest.mark.parametrize("command", ["segment", "export", "models", "doctor", "pull"])
def test_help_has_an_example_and_json(call: Callable[..., Answer], command: str) -> None:
    answer = call(command, "--help")
    assert answer.code == 0 and f"Example: vkrt {command}" in answer.out
    assert "--json" in answer.out


def test_nothing_given_shows_help(call: Callable[..., Answer]) -> None:
    answer = call()
    assert answer.code == 0 and "segment" in answer.out
    assert call("--version").out == f"{vkrt.__version__}\n"


# As a user's shell sees it.


def shell(*arguments: Any, cwd: Path) -> Answer:
    command = [sys.executable, "-m", "vkrt.cli", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    return Answer(done.returncode, done.stdout, done.stderr)


def test_a_process_segments(here: Path, nano_checkpoint: Path) -> None:
    given = ("segment", "photo.png", "--checkpoint", nano_checkpoint, "--point", "70,40")
    answer = shell(*given, "--out", "m.png", "--json", cwd=here)
    assert answer.code == 0 and answer.err == ""
    assert answer.json["masks"][0]["file"] == "m.png" and (here / "m.png").is_file()


def test_a_process_fails_in_one_line(here: Path) -> None:
    (here / "empty.png").touch()
    answer = shell("segment", "empty.png", "--point", "1,1", "--out", "m.png", cwd=here)
    assert answer.code == 2 and answer.out == "" and answer.err.count("\n") == 1
    assert answer.err.startswith("vkrt: ") and files(here) == {"photo.png", "empty.png"}

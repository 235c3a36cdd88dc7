"""`vkrt generate` and `vkrt doctor MODEL`: what they write and print, and one line for failures."""

from __future__ import annotations

import inspect
import io
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Answer, call
from PIL import Image

import vkrt
from vkrt.cli.generate_request import KINDS, Recipe, checked
from vkrt.engines.watch import StepInfo
from vkrt.errors import GenerationError, ImageError
from vkrt.media.picture import read_parameters, save_png
from vkrt.memory.activations import Shape
from vkrt.memory.plan import Plan, make_plan
from vkrt.models.sd35.known import KNOWN

__all__ = ["call"]

STEPS = 4


@dataclass
class Painter:
    """Stand in for a model: its pictures are of one colour, by their seeds and prompt."""

    name: str = "sd3.5-medium"
    limit: int | None = None
    fails: BaseException | None = None
    loaded: dict[str, Any] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)
    loras: list[tuple[Path, float]] = field(default_factory=list)
    closed: int = 0

    def load_lora(self, path: Path, scale: float) -> None:
        self.loras.append((path, scale))

    def generate(self, **asked: Any) -> list[Image.Image]:
        self.asked.append(asked)
        steps = asked.get("steps") or STEPS
        for step in range(1, steps + 1):
            if self.fails is not None and step == 2:
                raise self.fails
            if asked["on_step"] is not None:
                asked["on_step"](StepInfo(step, steps, 1 - step / steps))
        size = asked.get("width", 64), asked.get("height", 48)
        return [self.paint(asked, steps, size, index) for index in range(asked["count"])]

    def paint(
        self, asked: dict[str, Any], steps: int, size: tuple[int, int], index: int
    ) -> Image.Image:
        seed = asked["seed"] + index
        picture = Image.new("RGB", size, (seed % 256, steps, len(asked["prompt"]) % 256))
        numbers = {"steps": steps, "guidance": 4.5, "sampler": "euler", "seed": seed}
        width, height = size
        picture.info["parameters"] = {**numbers, "width": width, "height": height, "model": "?"}
        return picture

    def plan(self, count: int, control: bool, **numbers: Any) -> Plan:
        self.asked.append({"count": count, "control": control, **numbers})
        size = {name: numbers[name] for name in ("width", "height") if name in numbers}
        weights = {"clip_l": 300, "t5": 5000, "conditioning": 900, "mmdit": 4000, "vae_decoder": 90}
        shape = Shape(KNOWN[self.name], rows=2 * count, **size)
        mib = {stage: mib * 2**20 for stage, mib in weights.items()}
        return make_plan(shape, mib, mib.keys(), self.limit)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def painter(monkeypatch: pytest.MonkeyPatch) -> Painter:
    """Return the model that vkrt.load gives."""
    made = Painter()

    def load(model: str, **settings: Any) -> Painter:
        made.loaded = {"model": model, **settings}
        return made

    monkeypatch.setattr(vkrt, "load", load)
    return made


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo: np.ndarray) -> Path:
    """Return the current folder, which holds photo.png, mask.png and nothing else."""
    folder = tmp_path / "here"
    folder.mkdir()
    Image.fromarray(photo).save(folder / "photo.png")
    Image.new("L", (120, 90), 255).save(folder / "mask.png")
    monkeypatch.chdir(folder)
    return folder


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"photo.png", "mask.png"}


# What a generation gives.


def test_a_prompt_becomes_a_picture(
    call: Callable[..., Answer], here: Path, painter: Painter
) -> None:
    answer = call("generate", "a lighthouse", "--seed", "7", "--size", "64x32", "--out", "out.png")
    assert answer.code == 0 and answer.err == "" and "out.png" in answer.out
    assert files(here) == {"out.png"} and painter.closed == 1
    with Image.open("out.png") as picture:
        assert picture.size == (64, 32) and picture.getpixel((0, 0)) == (7, STEPS, 12)
    stored = read_parameters("out.png")
    assert stored == {
        **{"prompt": "a lighthouse", "model": "sd3.5-medium", "vkrt": vkrt.__version__},
        **{"seed": 7, "steps": STEPS, "guidance": 4.5, "sampler": "euler"},
        **{"width": 64, "height": 32},
    }
    assert painter.loaded == {
        **{"model": "sd3.5-medium", "backend": "auto", "device": "auto", "threads": None}
    }


EVERYTHING = (
    *("--negative", "fog", "--size", "128x96", "--steps", "3", "--guidance", "2.5", "--seed", "5"),
    *("--image", "photo.png", "--strength", "0.4", "--mask", "mask.png"),
    *("--control", "photo.png", "--control-model", "net.safetensors", "--control-scale", "0.7"),
    *("--lora", "a.safetensors:0.5", "--lora", "b:c.safetensors"),
    *("--sampler", "dpmpp_2m", "--shift", "2", "--profile", "diffusers", "--t5-length", "100"),
    *("--skip-layers", "1,2", "--skip-scale", "1.5", "--precision", "t5=bf16"),
    *("--model", "sd3.5-large", "--checkpoint", "w.safetensors", "--tokenizers", "tok"),
    *("--clip-l", "l.safetensors", "--clip-g", "g.safetensors", "--t5", "t", "--vae", "v"),
)


def test_options_reach_the_model(
    call: Callable[..., Answer], here: Path, painter: Painter, photo: np.ndarray
) -> None:
    given = ("--memory-limit", "8GiB", "--threads", "1", "--backend", "eager", "--device", "cpu")
    assert call("generate", "a", *EVERYTHING, *given).code == 0
    encoders = {"clip_l": "l.safetensors", "clip_g": "g.safetensors", "t5": "t", "vae": "v"}
    assert painter.loaded == {
        **{"model": "sd3.5-large", "checkpoint": Path("w.safetensors"), "precision": "t5=bf16"},
        **{"tokenizers": Path("tok"), "control_model": Path("net.safetensors"), "threads": 1},
        **{"encoders": {name: Path(file) for name, file in encoders.items()}},
        **{"memory_limit": 8 * 2**30, "backend": "eager", "device": "cpu"},
    }
    assert painter.loras == [(Path("a.safetensors"), 0.5), (Path("b:c.safetensors"), 1.0)]
    (asked,) = painter.asked
    for name in ("image", "control"):
        np.testing.assert_array_equal(asked.pop(name), photo)
    assert asked.pop("mask").shape == (90, 120, 3)
    assert asked == {
        **{"prompt": "a", "negative": "fog", "width": 128, "height": 96, "steps": 3, "seed": 5},
        **{"guidance": 2.5, "strength": 0.4, "control_scale": 0.7, "sampler": "dpmpp_2m"},
        **{"shift": 2.0, "profile": "diffusers", "t5_length": 100, "skip_layers": [1, 2]},
        **{"skip_scale": 1.5, "count": 1, "on_step": None},
    }
    assert files(here) == {"generated-5.png"}


def test_the_engine_takes_what_it_is_asked(
    call: Callable[..., Answer], here: Path, painter: Painter
) -> None:
    from vkrt.engines.sd35 import Generator

    call("generate", "a", *EVERYTHING, "--out", "a.png")
    call("doctor", "sd3.5-medium", "--size", "64x64", "--steps", "2", "--guidance", "1")
    asked, planned = painter.asked
    inspect.signature(Generator.generate).bind(None, **asked)
    inspect.signature(Generator.plan).bind(None, **planned)


def test_a_picture_is_made_again(call: Callable[..., Answer], here: Path, painter: Painter) -> None:
    given = ("generate", "a", *EVERYTHING, "--count", "2", "--out", "first.png")
    assert call(*given).code == 0
    assert call("generate", "--from", "first-2.png", "--out", "again.png").code == 0
    first, again = painter.asked
    for name in ("image", "mask", "control"):
        np.testing.assert_array_equal(first.pop(name), again.pop(name))
    # What the engine took in the place of what was said is what counts the second time.
    used = {"guidance": 4.5, "sampler": "euler"}
    assert again == {**first, **used, "seed": 6, "count": 1}
    assert painter.loras[:2] == painter.loras[2:]
    assert read_parameters("again.png") == read_parameters("first-2.png")
    assert Path("again.png").read_bytes() == Path("first-2.png").read_bytes()


def test_what_is_given_counts_before_what_is_stored(
    call: Callable[..., Answer], here: Path, painter: Painter
) -> None:
    call("generate", "a", "--seed", "3", "--steps", "9", "--lora", "x", "--out", "a.png")
    given = ("--from", "a.png", "--steps", "5", "--lora", "y:2", "--size", "32x16")
    assert call("generate", "", *given, "--out", "b.png").code == 0
    asked = painter.asked[1]
    assert asked["prompt"] == "" and (asked["steps"], asked["seed"]) == (5, 3)
    assert (asked["width"], asked["height"]) == (32, 16)
    assert painter.loras[1:] == [(Path("y"), 2.0)]


def test_several_pictures_have_numbers_and_seeds(
    call: Callable[..., Answer], here: Path, painter: Painter
) -> None:
    given = ("--count", "3", "--seed", "40", "--out", "o.png", "--json")
    answer = call("generate", "a", *given)
    assert files(here) == {"o-1.png", "o-2.png", "o-3.png"} and answer.err == ""
    assert answer.json["images"] == [
        {"file": f"o-{i}.png", "width": 64, "height": 48, "seed": 39 + i} for i in (1, 2, 3)
    ]
    assert [read_parameters(f"o-{i}.png")["seed"] for i in (1, 2, 3)] == [40, 41, 42]
    assert set(answer.json) == {"model", "images", "parameters", "ms"}
    assert answer.json["parameters"]["steps"] == STEPS
    assert set(answer.json["ms"]) == {"load", "generate", "write"}


def test_a_seed_is_drawn_and_kept(
    call: Callable[..., Answer], here: Path, painter: Painter
) -> None:
    seeds = {call("generate", "a", "--json").json["images"][0]["seed"] for _ in range(2)}
    assert len(seeds) == 2
    assert files(here) == {f"generated-{seed}.png" for seed in seeds}
    assert {asked["seed"] for asked in painter.asked} == seeds


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_bar_is_on_a_terminal_only(
    call: Callable[..., Answer], here: Path, painter: Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("generate", "a", "--out", "a.png").err == ""
    assert painter.asked[0]["on_step"] is None
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert call("generate", "a", "--out", "a.png").code == 0
    assert painter.asked[1]["on_step"] is not None
    assert f"{STEPS}/{STEPS}" in terminal.getvalue() and "decoding" in terminal.getvalue()


def test_warnings_are_lines(
    call: Callable[..., Answer], here: Path, painter: Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = painter.generate

    def generate(**asked: Any) -> list[Image.Image]:
        warnings.warn("the prompt is cut\nbehind 'fog'", RuntimeWarning, stacklevel=1)
        return real(**asked)

    monkeypatch.setattr(painter, "generate", generate)
    answer = call("generate", "a", "--out", "a.png")
    assert answer.code == 0 and answer.err == "vkrt: the prompt is cut behind 'fog'\n"


# What goes wrong: one line, exit code 2, nothing left behind, nothing loaded in vain.


def prepare_bad_files(here: Path) -> None:
    """Write the inputs of BAD."""
    (here / "text.png").write_text("no picture")
    picture = Image.new("RGB", (8, 8))
    save_png(picture, here / "odd.png", {"prompt": "a", "steps": "many"})
    save_png(picture, here / "empty.png", {"seed": 3})
    save_png(picture, here / "gone.png", {"prompt": "a", "image": "gone-too.png"})


BAD = {
    "no prompt": ([], "say what to make"),
    "two prompts": (["a", "b"], "b"),
    "an odd size": (["a", "--size", "100x64"], "multiples of 16; take 96x64"),
    "no size": (["a", "--size", "big"], "--size wants WIDTHxHEIGHT"),
    "no pixels": (["a", "--size", "0x64"], "take 16x64"),
    "half a size": (["a", "--size", "64"], "--size wants"),
    "no steps": (["a", "--steps", "0"], "--steps"),
    "too many steps": (["a", "--steps", "5000"], "1000"),
    "no pictures": (["a", "--count", "0"], "--count"),
    "a negative seed": (["a", "--seed", "-1"], "--seed"),
    "no number": (["a", "--guidance", "high"], "--guidance"),
    "an unknown sampler": (["a", "--sampler", "ddim"], "sampler must be"),
    "an unknown profile": (["a", "--profile", "mine"], "profile must be"),
    "no shift": (["a", "--shift", "nan"], "shift must be"),
    "a mask alone": (["a", "--mask", "mask.png"], "--mask needs --image"),
    "a strength alone": (["a", "--strength", "0.5"], "--strength needs --image"),
    "control alone": (["a", "--control", "photo.png"], "--control needs --control-model"),
    "a scale alone": (["a", "--control-scale", "2"], "--control-scale needs --control"),
    "no LoRA": (["a", "--lora", ":0.5"], "--lora wants FILE:SCALE"),
    "a LoRA of NaN": (["a", "--lora", "x:nan"], "--lora wants FILE:SCALE"),
    "no layers": (["a", "--skip-layers", "7;8"], "--skip-layers wants"),
    "no memory": (["a", "--memory-limit", "much"], "such as 8GiB"),
    "no image": (["a", "--image", "nowhere.png"], "nowhere.png"),
    "a damaged image": (["a", "--image", "text.png"], "text.png"),
    "no earlier picture": (["--from", "nowhere.png"], "nowhere.png"),
    "an earlier photo": (["--from", "photo.png"], "does not say how it was made"),
    "an odd earlier picture": (["--from", "odd.png"], "steps is 'many', which is not a whole"),
    "no earlier prompt": (["--from", "empty.png"], "say what to make"),
    "an earlier image that went": (["--from", "gone.png"], "gone-too.png"),
    "another ending": (["a", "--out", "o.jpg"], "must end in .png"),
    "no folder": (["a", "--out", "nowhere/o.png"], "nowhere"),
    "the input": (["a", "--image", "photo.png", "--out", "photo.png"], "is also an input"),
    "the earlier picture": (["--from", "odd.png", "--steps", "1", "--out", "odd.png"], "steps is"),
    "an unknown option": (["a", "--stepz", "4"], "--stepz"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input_gets_one_line(
    call: Callable[..., Answer], here: Path, painter: Painter, case: str
) -> None:
    prepare_bad_files(here)
    before = files(here)
    arguments, words = BAD[case]
    answer = call("generate", *arguments)
    assert answer.code == 2 and answer.out == ""
    assert answer.err.startswith("vkrt: ") and answer.err.count("\n") == 1
    assert words in answer.err
    assert files(here) == before and not painter.loaded


FAILURES = {
    "Ctrl-C": (KeyboardInterrupt(), 130, "interrupted"),
    "NaN": (GenerationError("mmdit gives NaN"), 2, "mmdit gives NaN"),
    "no memory": (MemoryError(), 2, "out of memory; give --memory-limit"),
}


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("case", list(FAILURES))
def test_a_failed_run_leaves_what_was_there(
    call: Callable[..., Answer],
    here: Path,
    painter: Painter,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
    terminal: bool,
) -> None:
    (here / "o-1.png").write_bytes(b"older")
    painter.fails, code, words = FAILURES[case]
    shown = Terminal()
    if terminal:
        monkeypatch.setattr(sys, "stderr", shown)
    answer = call("generate", "a", "--count", "2", "--out", "o.png")
    lines = (shown.getvalue() if terminal else answer.err).splitlines()
    assert answer.code == code and "vkrt: " in lines[-1] and words in lines[-1]
    assert (terminal or len(lines) == 1) and answer.out == ""
    assert files(here) == {"o-1.png"} and (here / "o-1.png").read_bytes() == b"older"
    assert painter.closed == 1


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (OSError(28, "No space left on device"), 2)]
)
def test_a_half_written_file_is_no_file(
    call: Callable[..., Answer],
    here: Path,
    painter: Painter,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
) -> None:
    (here / "o.png").write_bytes(b"older")

    def save(self: Image.Image, stream: Any, *_: Any, **__: Any) -> None:
        stream.write(b"\x89PNG")
        raise error

    monkeypatch.setattr(Image.Image, "save", save)
    answer = call("generate", "a", "--out", "o.png")
    assert answer.code == code and answer.err.count("\n") == 1
    assert files(here) == {"o.png"} and (here / "o.png").read_bytes() == b"older"


def test_a_model_of_another_kind(
    call: Callable[..., Answer], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vkrt, "load", lambda *_, **__: object())
    answer = call("generate", "a", "--model", "sam2.1-tiny")
    assert answer.code == 2 and "sam2.1-tiny makes no pictures" in answer.err
    assert call("doctor", "sam2.1-tiny").err == answer.err and not files(here)


ODD = (
    *(True, 0, -1, 2**70, 0.5, float("inf"), float("nan"), "", "text", "a\0b", "long" * 30_000),
    *([], [1], [True], [0.5], [{}], [{"file": "x", "scale": 1}], [{"file": 1, "scale": 1}]),
    *([{"file": "x", "scale": float("nan")}], {}, {"a": 1}),
)


@pytest.mark.parametrize("name", list(KINDS))
def test_stored_parameters_are_read_or_refused(name: str) -> None:
    refused = 0
    for value in ODD:
        try:
            recipe = checked({name: value, "other": value}, "old.png")
        except ImageError as error:
            assert "\n" not in str(error) and name in str(error) and len(str(error)) < 220
            refused += 1
            continue
        assert recipe.said == {name: value}
        # What a run takes of it comes without a surprise.
        said = recipe.over(Recipe({"prompt": "a", "seed": 1}))
        assert all(isinstance(path, Path) for path in said.inputs())
        said.loading()
        json.dumps(said.asking(), allow_nan=False)
    assert 0 < refused < len(ODD)
    assert checked({name: None}, "old.png").said == {}


# vkrt doctor MODEL.


def test_doctor_prints_the_plan(call: Callable[..., Answer], painter: Painter) -> None:
    given = ("doctor", "sd3.5-medium", "--checkpoint", "w", "--size", "512x256", "--steps", "9")
    answer = call(*given, "--count", "2", "--json")
    assert answer.code == 0 and answer.err == ""
    assert painter.loaded["checkpoint"] == Path("w") and painter.closed == 1
    asked = {"count": 2, "control": False, "width": 512, "height": 256, "steps": 9}
    assert painter.asked == [asked]
    report, plan = answer.json, Painter().plan(**asked)
    assert report["peak"] == plan.peak and report["fits"] and report["limit"] is None
    assert report["model"] == "sd3.5-medium" and report["width"] == 512
    weights = {row["stage"]: row["weights"] for row in report["stages"]}
    assert weights == dict(plan.weights)
    assert max(phase["peak"] for phase in report["phases"]) == report["peak"]
    shown = call(*given, "--count", "2")
    assert shown.code == 0
    assert f"expected peak: {plan.peak / 2**30:.1f} GiB" in shown.out
    for row in plan.table():
        assert row.stage in shown.out
    assert "3.9 GiB" in shown.out and "stays loaded" in shown.out


def test_doctor_tells_what_does_not_fit(call: Callable[..., Answer], painter: Painter) -> None:
    painter.limit = 6 * 2**30
    answer = call("doctor", "sd3.5-medium", "--memory-limit", "6GiB")
    assert painter.loaded["memory_limit"] == painter.limit
    assert answer.code == 0 and "limit: 6.0 GiB, fits" in answer.out
    painter.limit = 2**20
    answer = call("doctor", "sd3.5-medium", "--memory-limit", "1MiB")
    assert answer.code == 1 and "does NOT fit" in answer.out


def test_doctor_streams_what_is_too_large(call: Callable[..., Answer], painter: Painter) -> None:
    painter.limit = 3 * 2**30
    assert "streamed" in call("doctor", "sd3.5-medium", "--memory-limit", "3GiB").out


def test_options_of_a_plan_need_a_model(call: Callable[..., Answer]) -> None:
    answer = call("doctor", "--size", "64x64")
    assert answer.code == 2 and "vkrt doctor MODEL" in answer.err and answer.err.count("\n") == 1


@pytest.mark.parametrize("command", ["generate", "doctor"])
def test_help_has_an_example_and_json(call: Callable[..., Answer], command: str) -> None:
    answer = call(command, "--help")
    assert answer.code == 0 and f"Example: vkrt {command}" in answer.out and "--json" in answer.out

"""The command line: whatever is typed for any option, there is an answer or one line."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from absurd import TEXTS
from command_line import Answer, call
from pico import NAME
from PIL import Image
from sd35_tiny import make_generator
from tracking import fake

import vkrt
from vkrt import exporting
from vkrt.cli.main import app
from vkrt.errors import BackendError
from vkrt.options import Options

__all__ = ["call"]

# A command line that works, for each command; options of the test come behind it.
WORKS: dict[str, tuple[str, ...]] = {
    "segment": ("photo.png", "--point", "20,30", "--model", NAME, "--json"),
    "track": ("clip", "--point", "20,30@0", "--model", NAME, "--frames", "2", "--json"),
    "generate": ("a fox", "--size", "32x32", "--steps", "1", "--seed", "1", "--out", "fox.png"),
    "export": (NAME, "--out", "bundle.vkrt"),
    "doctor": ("sd3.5-medium", "--size", "32x32", "--json"),
    "models": ("--json",),
    "pull": ("sam2.1-nano",),
    "cache list": (),
    "cache clear": ("--refusals",),
}
# Arguments have no name on the command line: their place in it.
PLACES = {"photo": 0, "clip": 0, "prompt": 0, "model": 0, "name": 0}
NO_ARGUMENT_GIVEN = {"cache clear"}
QUICK = ("x\ny", "x" * 5000, "nan", "9" * 400, "-1")


def commands(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Give every command by its words."""
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def parameters() -> Iterator[tuple[str, str]]:
    """Give every option and argument of every command."""
    for words, command in commands():
        for parameter in command.params:
            is_option = parameter.param_type_name == "option"
            yield words, parameter.opts[0] if is_option else parameter.name


def lines(words: str, parameter: str, values: tuple[str, ...]) -> Iterator[list[str]]:
    """Give a command line for each value."""
    works = list(WORKS[words])
    for value in values:
        if parameter.startswith("-"):
            yield [*words.split(), *works, parameter, value]
        elif words in NO_ARGUMENT_GIVEN:
            yield [*words.split(), value]
        else:
            place = PLACES[parameter]
            yield [*words.split(), *works[:place], value, *works[place + 1 :]]


@pytest.fixture
def there(
    pico: str, pico_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stand where a photo and a clip are, with models that compute nothing and nothing to fetch."""
    folder = tmp_path / "here"
    (folder / "clip").mkdir(parents=True)
    for name in ("photo.png", "clip/0.png", "clip/1.png", "clip/2.png"):
        pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("VKRT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    segmenter, generator, real = fake()[0], make_generator()[0], vkrt.load
    generator.close = lambda: None  # type: ignore[method-assign]
    made = {NAME: segmenter, "sd3.5-medium": generator}

    def load(model: str, checkpoint: Any = None, **settings: Any) -> Any:
        if checkpoint is None and model in made:
            limited = ("threads", "backend", "device", "memory_limit", "export")
            Options(**{name: settings[name] for name in limited if name in settings})
            if settings.get("image_size") is None and not settings.get("encoders"):
                return made[model]
        return real(model, pico_checkpoint if checkpoint is None else checkpoint, **settings)

    def refuse(*_: Any, **__: Any) -> None:
        raise BackendError("this test exports nothing")

    monkeypatch.setattr(vkrt, "load", load)
    monkeypatch.setattr(exporting, "export_weights", refuse)
    monkeypatch.setattr(exporting, "export_pictures", refuse)


def check(call: Callable[..., Answer], words: str, parameter: str, values: tuple[str, ...]) -> None:
    """Type the values; each gets an answer or one line on stderr."""
    for line in lines(words, parameter, values):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                answer = call(*line)
            except BaseException as error:
                raise AssertionError(f"vkrt {line!r:.300} raised {error!r:.300}") from error
        shown = f"vkrt {line!r:.300} gave {answer.code}, {answer.err!r:.400}"
        assert answer.code in (0, 1, 2), shown
        assert "\x1b" not in answer.err, shown
        told = answer.err.splitlines()
        assert all(each.startswith("vkrt: ") for each in told), shown
        assert answer.code != 2 or len(told) == 1, shown


@pytest.mark.parametrize(("words", "parameter"), list(parameters()))
def test_one_line_or_an_answer(
    call: Callable[..., Answer], there: None, words: str, parameter: str
) -> None:
    check(call, words, parameter, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize(("words", "parameter"), list(parameters()))
def test_one_line_or_an_answer_to_everything(
    call: Callable[..., Answer], there: None, words: str, parameter: str
) -> None:
    check(call, words, parameter, TEXTS)


@pytest.mark.parametrize("words", list(WORKS))
def test_the_command_lines_beneath_work(
    call: Callable[..., Answer], there: None, words: str
) -> None:
    answer = call(*words.split(), *WORKS[words])
    wanted = 2 if words == "export" else 0
    assert answer.code == wanted, answer.err

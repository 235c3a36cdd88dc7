"""Arguments: whatever is given, there is an answer or one line that says what was wrong."""

from __future__ import annotations

import functools
import inspect
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absurd import ABSURD, ask
from pico import NAME
from sd35_tiny import make_generator
from tracking import fake

import vkrt
from vkrt import arguments, errors
from vkrt.catalog import find
from vkrt.engines.inputs import Inputs
from vkrt.engines.request import read_request
from vkrt.engines.sam2_image import Segmenter
from vkrt.engines.sam2_track import Track, TrackSettings
from vkrt.engines.sam2_video import Stream
from vkrt.engines.sd35 import Generator
from vkrt.errors import BackendError, PromptError, VkrtError
from vkrt.exporting import export_model, export_to_cache
from vkrt.media.image import read_image
from vkrt.media.prompts import prepare
from vkrt.media.video import open_camera, open_video
from vkrt.options import Options, parse_bytes
from vkrt.weights.hub import pull

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (60, 80, 3), np.uint8)
CLIP = RNG.integers(0, 256, (6, 60, 80, 3), np.uint8)
SPOT = [[20, 30]]

# The public functions and classes that vkrt does not name itself.
OTHERS = (
    Generator,
    TrackSettings,
    Options,
    export_model,
    export_to_cache,
    open_camera,
    open_video,
    parse_bytes,
    pull,
    read_image,
)
# Made by vkrt alone: their methods are called, and not they themselves.
MADE_BY_VKRT = {
    "Generator",
    "ImageEmbedding",
    "Masks",
    "Segmenter",
    "Stream",
    "Track",
    "TrackedFrame",
}

# Takes what loading makes of weights, and nothing of a user's.
OF_LOADING = {"Segmenter.switch_to"}


@functools.cache
def segmenter() -> Segmenter:
    return fake()[0]


@functools.cache
def embedding() -> Any:
    return segmenter().encode(PHOTO)


def stream() -> Stream:
    made = segmenter().stream()
    made.step(CLIP[0], [vkrt.Prompt(1, points=SPOT)])
    return made


def track() -> Track:
    made = segmenter().track(CLIP)
    made.prompt(0, 1, points=SPOT)
    return made


@functools.cache
def generator() -> Generator:
    return make_generator()[0]


# What the methods of each class are called on.
MADE: dict[str, Callable[[], Any]] = {
    "Generator": generator,
    "ImageEmbedding": embedding,
    "Segmenter": segmenter,
    "Stream": stream,
    "Track": track,
}


def request_of(made: Generator) -> Any:
    return read_request(made.config, "a fox", width=32, height=32, steps=1, seed=1)


# A value that fits, for each argument that has to be there: by its name, or by that of what takes
# it before. Those with a default are left at it.
FITS: dict[str, Callable[[Any], Any]] = {
    "clip": lambda _: CLIP,
    "embedding": lambda made: made.encode(PHOTO),
    "feature_maps.embedding": lambda made: made.encode(PHOTO),
    "frame": lambda _: 0,
    "Stream.step.frame": lambda _: CLIP[1],
    "inputs": lambda _: Inputs((32, 32)),
    "load.model": lambda _: NAME,
    "export_model.model": lambda _: "no such model",
    "export_to_cache.model": lambda _: "no such model",
    "pull.model": lambda _: find("sam2.1-nano"),
    "obj": lambda _: 1,
    "out": lambda _: "bundle.vkrt",
    "path": lambda _: "file.safetensors",
    "photo": lambda _: PHOTO,
    "prompt": lambda _: "a fox",
    "prompts": lambda made: prepare((60, 80), made.config.image_size, SPOT),
    "request": request_of,
    "source": lambda _: CLIP,
    "Image.source": lambda _: PHOTO,
    "read_image.source": lambda _: PHOTO,
    "amount_text": lambda _: "8GiB",
}
# Others that make the call cheap, or let it come as far as the argument.
BESIDE: dict[str, dict[str, Any]] = {
    "ImageEmbedding.predict": {"points": SPOT},
    "Track.prompt": {"points": SPOT},
    "Track.propagate": {"frames": 2},
    "Track.clear": {"frame": 0},
    "Generator.generate": {"width": 32, "height": 32, "steps": 1, "seed": 1},
    "Generator.plan": {"width": 32, "height": 32},
    "pull": {"offline": True},
}
# Further arguments that **settings and **numbers take.
BEHIND = {
    "Segmenter.track": tuple(inspect.signature(TrackSettings).parameters),
    "Generator.plan": ("steps", "guidance", "profile", "t5_length", "skip_layers"),
}


def subjects() -> Iterator[tuple[str, str]]:
    """Give the names of every public callable, and of each of its arguments."""
    for subject, call in callables().items():
        for parameter in inspect.signature(call).parameters.values():
            if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                continue
            if parameter.name not in ("self", "cls"):
                yield subject, parameter.name
        for name in BEHIND.get(subject, ()):
            yield subject, name


def callables() -> dict[str, Any]:
    """Return every public callable by its name."""
    public = [getattr(vkrt, name) for name in vkrt.__all__]
    found: dict[str, Any] = {}
    for each in (*public, *OTHERS):
        if not isinstance(each, type):
            found[each.__name__] = each
        elif not issubclass(each, VkrtError):
            if each.__name__ not in MADE_BY_VKRT:
                found[each.__name__] = each
            members = vars(each).items() if each.__name__ in MADE else ()
            found.update(
                (f"{each.__name__}.{name}", member)
                for name, member in members
                if inspect.isfunction(member) and not name.startswith("_")
            )
    return {name: each for name, each in found.items() if name not in OF_LOADING}


def bound(subject: str, others: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return what is to be called, and values that fit for all arguments but one."""
    call = callables()[subject]
    owner, _, method = subject.partition(".")
    made = MADE[owner]() if method else None
    given = dict(BESIDE.get(subject, {}))
    for parameter in inspect.signature(call).parameters.values():
        name = parameter.name
        needed = parameter.default is parameter.empty and name != "self" and name not in given
        if needed and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            fitting = FITS.get(f"{subject}.{name}") or FITS.get(name)
            assert fitting is not None, f"say in FITS what fits as {name} of {subject}"
            given[name] = fitting(made)
    given.pop(others, None)
    return (getattr(made, method) if method else call), given


@pytest.fixture
def quiet(
    pico: str, pico_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Have weights for what is loaded, nothing to fetch, and an empty current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VKRT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setitem(BESIDE, "load", {"checkpoint": pico_checkpoint, "backend": "eager"})


def check(subject: str, argument: str, values: dict[str, Any]) -> None:
    """Give an argument values that hardly fit; each gets an answer or one line."""
    call, given = bound(subject, argument)
    refused = 0
    for name, value in values.items():
        asked = functools.partial(call, **{**given, argument: value})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                refused += ask(asked) is not None
            except Exception as error:
                told = f"{subject}({argument}={name}) raised {error!r:.300}"
                raise AssertionError(told) from error
    # Whatever takes all of them does not look at them.
    assert refused or (subject, argument) in TAKES_ALL


TAKES_ALL = {("Prompt", name) for name in ("obj", "points", "labels", "box", "mask")}

EVERY = list(subjects())


@pytest.mark.parametrize(("subject", "argument"), EVERY)
def test_an_answer_or_one_line(quiet: None, subject: str, argument: str) -> None:
    check(subject, argument, {name: ABSURD[name] for name in QUICK})


# Those that found most; the others are for the slow suite.
QUICK = (
    *(
        "None",
        "object",
        "nameless",
        "two lines",
        "long text",
        "NUL",
        "bytes",
        "list",
        "dict",
        "NaN",
    ),
    *("infinity", "-1", "0", "True", "10**400", "-10**5000", "1e308", "numpy NaN", "array"),
)


@pytest.mark.slow
@pytest.mark.parametrize(("subject", "argument"), EVERY)
def test_an_answer_or_one_line_to_everything(quiet: None, subject: str, argument: str) -> None:
    check(subject, argument, ABSURD)


# The checks themselves.


def test_messages_are_one_printable_line() -> None:
    kinds = [getattr(errors, name) for name in errors.__all__]
    assert len(kinds) > 9
    for kind in kinds:
        error = kind("a\n\tb\x1b[31m \udc80 \x85é")
        assert str(error) == r"a b\x1b[31m \udc80 é"
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
    cut = str(VkrtError("begin " + "x" * 10_000 + " end"))
    assert len(cut) <= errors.LONGEST and cut.startswith("begin xx") and cut.endswith("xx end")


def test_numbers_of_every_kind_become_pythons() -> None:
    whole = functools.partial(arguments.whole, "steps", low=1, high=9, kind=BackendError)
    for value in (3, np.int8(3), np.uint64(3), np.array(3)):
        assert whole(value) == 3 and type(whole(value)) is int
    number = functools.partial(arguments.number, "shift", low=0, high=9, kind=BackendError)
    for value in (2, 2.0, np.float16(2), np.int64(2), np.array(2.0)):
        assert number(value) == 2 and type(number(value)) is float
    for value, told in ((0, "0"), (10, "10"), (True, "True"), ("3", "'3'"), (2.0, "2.0")):
        with pytest.raises(
            BackendError, match=f"steps must be a whole number from 1 to 9, not {told}"
        ):
            whole(value)
    for value in (-1, float("nan"), float("inf"), 10**400, "1", None, np.True_, np.ones(1)):
        with pytest.raises(BackendError, match="shift must be a number from 0 to 9, not "):
            number(value)


def test_other_checks_name_the_argument() -> None:
    assert arguments.flag("keep", np.True_, kind=PromptError) is True
    assert arguments.flag("keep", 0, kind=PromptError) is False
    with pytest.raises(PromptError, match="keep must be True or False, not 'yes'"):
        arguments.flag("keep", "yes", kind=PromptError)
    with pytest.raises(PromptError, match=r'sampler must be "a" or "b", not \[\]'):
        arguments.choice("sampler", [], ("a", "b"), kind=PromptError)
    for value in ("", "a\0b", b"a", 3, "x" * 5000):
        with pytest.raises(PromptError, match=r"file (must be a path|can't be the path)"):
            arguments.path("file", value, kind=PromptError)
    assert arguments.path("file", "a/b", kind=PromptError) == Path("a/b")
    with pytest.raises(PromptError, match="hook must be a function, not 3"):
        arguments.function("hook", 3, kind=PromptError)
    assert len(arguments.shown(["x" * 1000] * 1000)) < 100
    assert arguments.shown(object()) == "a value of type object"


def test_bounds_are_those_that_are_stated() -> None:
    assert Options(threads=np.int64(1024), memory_limit=2**50).threads == 1024
    for name, value in (("threads", 1025), ("memory_limit", 2**50 + 1), ("threads", 0)):
        with pytest.raises(BackendError, match=f"{name} must be a whole number from 1 to "):
            Options(**{name: value})
    with pytest.raises(PromptError, match="conditioning must be a whole number from 1 to 1024"):
        segmenter().stream(conditioning=1025)
    with pytest.raises(PromptError, match="history must be a whole number from 1 to 1000000"):
        segmenter().track(CLIP, history=10**7)


OF_THE_OTHERS = [
    ("memory_limit", 2**30),
    ("encoders", {"t5": "t5.safetensors"}),
    ("tokenizers", "."),
    ("control_model", "control.safetensors"),
]


@pytest.mark.parametrize(("name", "value"), OF_THE_OTHERS)
def test_a_segmenter_refuses_what_only_a_generator_takes(
    pico: str, pico_checkpoint: Path, name: str, value: Any
) -> None:
    words = f"{name} is of a model that makes pictures, and this one segments: leave {name} out"
    with pytest.raises(BackendError, match=words):
        vkrt.load(pico, pico_checkpoint, **{name: value})


@pytest.mark.parametrize(("name", "value"), [("image_size", 64), ("embedding_cache_bytes", 0)])
def test_a_generator_refuses_what_only_a_segmenter_takes(name: str, value: Any) -> None:
    with pytest.raises(BackendError, match=f"{name} is of a model that segments"):
        vkrt.load("sd3.5-medium", **{name: value})

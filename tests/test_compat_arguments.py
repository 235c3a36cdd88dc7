"""Upstream's calls: whatever is given, there is an answer or one line that says what was wrong."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absurd import ABSURD, use
from tracking import fake

from vkrt.compat.sam2 import (
    Sam2Handle,
    SAM2ImagePredictor,
    SAM2VideoPredictor,
    build_sam2,
    build_sam2_video_predictor,
)

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (60, 80, 3), np.uint8)
CLIP = [*RNG.integers(0, 256, (4, 60, 80, 3), np.uint8)]
SPOT, ON = [[20, 30]], [1]
QUICK = (
    *("None", "object", "nameless", "two lines", "long text", "NUL", "bytes", "list", "dict"),
    *("NaN", "-1", "0", "True", "10**400", "-10**5000", "1e308", "numpy NaN", "array"),
)


@functools.cache
def handle() -> Sam2Handle:
    return Sam2Handle(fake()[0])


@functools.cache
def video() -> SAM2VideoPredictor:
    return SAM2VideoPredictor(fake()[0])


def image() -> SAM2ImagePredictor:
    made = SAM2ImagePredictor(handle())
    made.set_image(PHOTO)
    return made


def images() -> SAM2ImagePredictor:
    made = SAM2ImagePredictor(handle())
    made.set_image_batch([PHOTO, PHOTO])
    return made


def state() -> Any:
    made = video().init_state(CLIP)
    video().add_new_points_or_box(made, 0, 1, SPOT, ON)
    return made


# What is called, on what, with values that fit; every argument with or without a default is tried.
CALLS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "SAM2ImagePredictor.set_image": (image, {"image": PHOTO}),
    "SAM2ImagePredictor.set_image_batch": (image, {"image_list": [PHOTO]}),
    "SAM2ImagePredictor.predict": (image, {"point_coords": SPOT, "point_labels": ON}),
    "SAM2ImagePredictor.predict_batch": (
        images,
        {"point_coords_batch": [SPOT, SPOT], "point_labels_batch": [ON, ON]},
    ),
    "SAM2VideoPredictor.init_state": (video, {"video_path": CLIP}),
    "SAM2VideoPredictor.add_new_points_or_box": (
        video,
        {"inference_state": state, "frame_idx": 0, "obj_id": 1, "points": SPOT, "labels": ON},
    ),
    "SAM2VideoPredictor.add_new_mask": (
        video,
        {"inference_state": state, "frame_idx": 0, "obj_id": 1, "mask": np.ones((60, 80), bool)},
    ),
    "SAM2VideoPredictor.propagate_in_video": (video, {"inference_state": state}),
    "SAM2VideoPredictor.clear_all_prompts_in_frame": (
        video,
        {"inference_state": state, "frame_idx": 0, "obj_id": 1},
    ),
    "SAM2VideoPredictor.remove_object": (video, {"inference_state": state, "obj_id": 1}),
    "SAM2VideoPredictor.reset_state": (video, {"inference_state": state}),
}
BUILDERS = {"build_sam2": build_sam2, "build_sam2_video_predictor": build_sam2_video_predictor}


def arguments_of(call: Callable[..., Any]) -> list[str]:
    """Return the names of a call's arguments."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = inspect.signature(call).parameters.values()
    return [each.name for each in found if each.kind in named and each.name != "self"]


def tried() -> list[tuple[str, str]]:
    """Return each call with each of its arguments."""
    classes = {each.__name__: each for each in (SAM2ImagePredictor, SAM2VideoPredictor)}
    methods = {name: getattr(classes[name.split(".")[0]], name.split(".")[1]) for name in CALLS}
    return [(n, a) for n, call in {**methods, **BUILDERS}.items() for a in arguments_of(call)]


def ask(call: Callable[[], Any]) -> None:
    """Call; upstream's code looks for RuntimeError and ValueError, which vkrt's errors are too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            use(call())
        except (RuntimeError, ValueError, OSError) as error:
            assert str(error) and "\n" not in str(error) and len(str(error)) < 2100


def check(subject: str, argument: str, names: tuple[str, ...]) -> None:
    """Give an argument values that hardly fit; each gets an answer or one line."""
    for name in names:
        call, given = BUILDERS.get(subject), {"config_file": "sam2.1-pico"}
        if call is None:
            make, given = CALLS[subject]
            call = getattr(make(), subject.split(".")[1])
        else:
            given["ckpt_path"] = str(CHECKPOINT[0])
        fitting = {n: value() if value is state else value for n, value in given.items()}
        try:
            ask(functools.partial(call, **{**fitting, argument: ABSURD[name]}))
        except Exception as error:
            told = f"{subject}({argument}={name}) raised {error!r:.300}"
            raise AssertionError(told) from error


CHECKPOINT: list[Path] = []


@pytest.fixture
def weights(pico: str, pico_checkpoint: Path) -> None:
    """Have weights for what is built."""
    CHECKPOINT[:] = [pico_checkpoint]


@pytest.mark.parametrize(("subject", "argument"), tried())
def test_an_answer_or_one_line(weights: None, subject: str, argument: str) -> None:
    check(subject, argument, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize(("subject", "argument"), tried())
def test_an_answer_or_one_line_to_everything(weights: None, subject: str, argument: str) -> None:
    check(subject, argument, tuple(ABSURD))

"""Tracking equals the official predictor, by figures that it gave once.

official_video/ has 8 frames and the low-resolution logits of the official code (at its commit
2b90b9f, on a CPU) for weights that official_weights makes. Its memories were kept in float32, as
ours are, and small holes were not filled, which it can only do on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from official_weights import write_official

from vkrt.compat.sam2 import SAM2VideoPredictor, build_sam2_video_predictor
from vkrt.compat.video_state import VideoState

HERE = Path(__file__).with_name("official_video")
FRAMES = HERE / "frames"
MODEL = "sam2.1-tiny"
SIZE = 240, 320
BAR = 1e-3

CLICK = {"points": np.array([[80, 100]], np.float32), "labels": np.array([1], np.int32)}
BOX = {"box": np.array([180, 110, 260, 190], np.float32)}
FIX = {"points": np.array([[150, 60]], np.float32), "labels": np.array([0], np.int32)}
MIDDLE = {"points": np.array([[143, 121]], np.float32), "labels": np.array([1], np.int32)}


def rectangle() -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[72:128, 44:118] = True
    return mask


@dataclass
class Run:
    """Drive a predictor on the frames.

    Attributes:
        found: logits (h, w) by object and frame, of the last time that each was tracked.
    """

    predictor: SAM2VideoPredictor
    state: VideoState
    found: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)

    def say(self, frame: int, obj: int, **said: Any) -> None:
        self.predictor.add_new_points_or_box(self.state, frame, obj, **said)

    def go(self, reverse: bool = False, frames: int | None = None) -> None:
        for frame, ids, masks in self.predictor.propagate_in_video(
            self.state, max_frame_num_to_track=frames, reverse=reverse
        ):
            assert masks.shape == (len(ids), 1, *SIZE)
            for obj, logits in self.state.logits(frame).items():
                self.found[obj, frame] = logits


def click_and_box(run: Run, frames: int | None = None) -> None:
    run.say(0, 1, **CLICK)
    run.say(0, 2, **BOX)
    run.go(frames=frames)


def corrected_at_4(run: Run) -> None:
    """A correction that conditions nothing is lost when its frame is tracked again, as it is."""
    click_and_box(run)
    run.say(4, 1, **FIX)
    assert np.abs(run.state.logits(4)[1] - run.found[1, 4]).max() > 1
    run.go()


def given_mask(run: Run) -> None:
    run.predictor.add_new_mask(run.state, 0, 1, rectangle())
    run.go()


def backwards(run: Run) -> None:
    run.say(7, 1, **MIDDLE)
    run.go(reverse=True)


CASES: dict[str, Callable[[Run], None]] = {
    "click_and_box": click_and_box,
    "corrected_at_4": corrected_at_4,
    "mask": given_mask,
    "backwards": backwards,
}
QUICK = ("post/click_and_box", "plain/mask")
KINDS = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in (f"{kind}/{case}" for kind in ("post", "plain") for case in CASES)
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Let no thread wait actively for another: at this size that costs more than it gives."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], SAM2VideoPredictor]:
    """Return what builds a predictor with or without postprocessing, but for holes."""
    path = write_official(tmp_path_factory.mktemp("official") / "tiny.pt", MODEL)
    small = "++model.image_size=256", "++model.fill_hole_area=0"

    @cache
    def build(post: bool) -> SAM2VideoPredictor:
        return build_sam2_video_predictor(
            "configs/sam2.1/sam2.1_hiera_t.yaml",
            path,
            hydra_overrides_extra=list(small),
            apply_postprocessing=post,
        )

    return build


@pytest.fixture(scope="module")
def official() -> dict[str, np.ndarray]:
    with np.load(HERE / "logits.npz") as file:
        return dict(file)


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the norm of the difference relative to that of what is wanted."""
    assert found.shape == wanted.shape
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def check(found: dict[tuple[int, int], np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    """Compare every object and frame, and see that they differ and show something."""
    assert {f"obj{obj}/frame{frame}" for obj, frame in found} == set(wanted)
    for (obj, frame), logits in found.items():
        theirs = wanted[f"obj{obj}/frame{frame}"]
        assert theirs.std() > 1 and 0.01 < (theirs > 0).mean() < 0.99
        assert relative_error(logits, theirs) < BAR, (obj, frame)
    first, *others = found.values()
    assert all(relative_error(other, first) > 10 * BAR for other in others)


@pytest.mark.parametrize("name", KINDS)
def test_it_equals_the_official_code(
    build: Callable[[bool], SAM2VideoPredictor], official: dict[str, np.ndarray], name: str
) -> None:
    kind, case = name.split("/")
    predictor = build(kind == "post")
    run = Run(predictor, predictor.init_state(str(FRAMES)))
    CASES[case](run)
    wanted = {key.removeprefix(f"{name}/"): v for key, v in official.items() if name in key}
    check(run.found, wanted)


def test_the_engine_alone_does_too(
    build: Callable[[bool], SAM2VideoPredictor], official: dict[str, np.ndarray]
) -> None:
    """And what makes no difference to a clicked frame makes one to those that remember it."""
    sam = build(True).segmenter
    off = {"dynamic_multimask": False, "binarize_prompts": False}
    for kind, options in (("post", {}), ("plain", off)):
        with sam.track(FRAMES, **options) as track:
            track.prompt(0, 1, **CLICK)
            found = [frame.logits[0] for frame in track.propagate(frames=2)]
        for frame, logits in enumerate(found):
            wanted = {
                k: official[f"{k}/click_and_box/obj1/frame{frame}"] for k in ("post", "plain")
            }
            assert relative_error(logits, wanted[kind]) < BAR
            differ = relative_error(wanted["post"], wanted["plain"])
            assert differ > 3 * BAR if frame else differ == 0

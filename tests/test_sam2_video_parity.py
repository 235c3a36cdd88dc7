"""Tracking equals transformers' Sam2VideoModel with the same random weights, in fp32.

Where the two differ by design, the oracle is made to do as we do, or the case is left out:

- transformers stores memories in bfloat16, we in float32: the oracle stores float32 here.
- Given a prompt for one object, transformers tracks all others on that frame again, and binarizes
  the masks of all of them for their memories: the oracle has a session for each object here.
- We, as the official code, let points refine the answer that was there: off here (refine=False).
- We let corrections condition later frames: off here (corrections_condition=False).
- For the pointer of a given mask, transformers takes the token of the best of three masks; we, as
  the official code, that of the single one: the oracle is asked for a single one here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers.models.sam2_video import modeling_sam2_video as theirs

from benchmarks.peers.transformers_video import video_model, video_twin
from vkrt import catalog
from vkrt.backends.eager import EagerBackend
from vkrt.engines.sam2_image import Segmenter
from vkrt.engines.sam2_track import Track
from vkrt.media.image import to_input
from vkrt.models.sam2.config import HieraConfig, MemoryConfig, Sam2Config
from vkrt.models.sam2.stage_set import all_stages
from vkrt.options import Options

FRAMES = 24
TOLERANCE = 1e-3
POINT = {"points": [[60.0, 50.0]], "labels": [1]}
BOX = {"box": [30.0, 30.0, 90.0, 80.0]}
FIX = {"points": [[40.0, 70.0], [90.0, 20.0]], "labels": [1, 0]}


class InFloat32:
    """Stand for torch in transformers' module, so that its memories stay what they are."""

    bfloat16 = torch.float32

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)


def moving(size: int) -> np.ndarray:
    """Return frames (T, size, size, 3) uint8 of two things that move over noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size]
    frames = rng.integers(0, 60, (FRAMES, size, size, 3)).astype(np.uint8)
    for index, frame in enumerate(frames):
        frame[(x - size * 0.3 - index) ** 2 + (y - size * 0.4) ** 2 < (size / 7) ** 2] = 220, 90, 40
        frame[(abs(x - size * 0.7 + index) < size / 8) & (abs(y - size * 0.6) < size / 6)] = (
            40,
            200,
            70,
        )
    return frames


@dataclass
class Pair:
    """Hold the oracle and ours, with the same weights and frames."""

    oracle: theirs.Sam2VideoModel
    config: Sam2Config
    frames: np.ndarray

    def track(self) -> Track:
        """Return our engine as the oracle does it."""
        stages = all_stages(video_twin(self.oracle, self.config))
        sam = Segmenter("theirs", self.config, stages, EagerBackend(Options()))
        return sam.track(self.frames, conditioning=8, refine=False, corrections_condition=False)

    def session(self) -> Session:
        """Return the oracle's state for one object."""
        return Session(self.oracle, self.frames, self.config.image_size)


class Session:
    """Drive the oracle for one object."""

    def __init__(self, oracle: theirs.Sam2VideoModel, frames: np.ndarray, size: int) -> None:
        pixels = torch.from_numpy(np.stack([to_input(frame, size) for frame in frames]))
        self.oracle, self.side, self.scale = oracle, size, size / frames.shape[1]
        self.state = theirs.Sam2VideoInferenceSession(
            pixels, *frames.shape[1:3], dtype=torch.float32
        )

    def prompt(self, frame: int, said: dict[str, object]) -> np.ndarray:
        """Return low-resolution logits (h, w) of a prompt."""
        row = self.state.obj_id_to_idx(1)
        if "mask" in said:
            mask = torch.as_tensor(said["mask"]).float()[None, None]
            # As the processor brings it to the model's size.
            large = F.interpolate(mask, self.side, mode="bilinear", antialias=True)
            self.state.add_mask_inputs(row, frame, (large >= 0.5).float())
        else:
            self.state.remove_mask_inputs(row, frame)
            self.state.add_point_inputs(row, frame, self.points(said))
        self.state.obj_with_new_inputs = [1]
        return self.oracle(self.state, frame_idx=frame).pred_masks[0, 0].numpy()

    def points(self, said: dict[str, object]) -> dict[str, torch.Tensor]:
        """Return what the processor makes of points, or of a box."""
        if "box" in said:
            points, labels = torch.tensor(said["box"]).view(1, 1, 2, 2), torch.tensor([[[2, 3]]])
        else:
            points = torch.tensor(said["points"])[None, None]
            labels = torch.tensor(said["labels"])[None, None]
        return {"point_coords": points * self.scale, "point_labels": labels.int()}

    def go(self, start: int, reverse: bool = False) -> Iterator[np.ndarray]:
        """Give the logits of frame after frame."""
        for out in self.oracle.propagate_in_video_iterator(self.state, start, reverse=reverse):
            yield out.pred_masks[0, 0].numpy()


def small(version: str) -> Sam2Config:
    """Return a config with all of the memory modules and little of everything else."""
    trunk = HieraConfig(16, 1, (1, 2, 3, 1), (4,))
    return Sam2Config(version, trunk, MemoryConfig(ffn_dim=256), 128, 128, 2, 128)


CONFIGS = {
    "2.1": small("2.1"),
    "2.0": small("2.0"),
    "tiny": catalog.find("sam2.1-tiny", 256).config,
}


@pytest.fixture(scope="module", params=["2.1", "2.0", pytest.param("tiny", marks=pytest.mark.slow)])
def pair(request: pytest.FixtureRequest) -> Pair:
    config = CONFIGS[request.param]
    return Pair(video_model(config), config, moving(128))


def differ(ours: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(ours - wanted).max())


@pytest.fixture(autouse=True)
def as_we_do(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    alone = theirs.Sam2VideoModel._single_frame_forward

    def forward(self: object, *args: object, multimask_output: bool = False, **rest: object):
        return alone(self, *args, multimask_output=multimask_output, **rest)

    monkeypatch.setattr(theirs, "torch", InFloat32())
    monkeypatch.setattr(theirs.Sam2VideoModel, "_single_frame_forward", forward)
    with torch.inference_mode():
        yield


def mask_of(frames: np.ndarray) -> np.ndarray:
    return frames[0, :, :, 1] > 150


@pytest.mark.parametrize("first", ["point", "mask"])
def test_two_objects_a_correction_and_the_way_back(pair: Pair, first: str) -> None:
    says = {1: POINT if first == "point" else {"mask": mask_of(pair.frames)}, 2: BOX}
    ours, oracles = pair.track(), {obj: pair.session() for obj in says}
    for obj, said in says.items():
        wanted = oracles[obj].prompt(0, said)
        found = ours.prompt(0, obj, **said)
        assert differ(found.logits[found.obj_ids.index(obj)], wanted) < TOLERANCE
    check(ours.propagate(0), {obj: oracle.go(0) for obj, oracle in oracles.items()})
    wanted = oracles[1].prompt(8, FIX)
    assert differ(ours.prompt(8, 1, **FIX).logits[0], wanted) < TOLERANCE
    check(ours.propagate(9), {obj: oracle.go(9) for obj, oracle in oracles.items()})
    check(
        ours.propagate(20, reverse=True),
        {obj: oracle.go(20, reverse=True) for obj, oracle in oracles.items()},
    )


def check(ours: Iterator[object], oracles: dict[int, Iterator[np.ndarray]]) -> None:
    """Compare frame by frame, and see that the masks say something."""
    shown = 0
    for found in ours:
        for index, obj in enumerate(found.obj_ids):
            wanted = next(oracles[obj])
            assert differ(found.logits[index], wanted) < TOLERANCE, (found.frame, obj)
            shown += int(0 < (wanted > 0).mean() < 1)
    assert shown > 0
    assert all(next(oracle, None) is None for oracle in oracles.values())


def test_a_later_prompt_and_an_earlier_one(pair: Pair) -> None:
    """Conditioning frames on both sides of what is tracked."""
    ours, oracle = pair.track(), pair.session()
    for frame, said in ((12, BOX), (3, POINT)):
        assert differ(ours.prompt(frame, 1, **said).logits[0], oracle.prompt(frame, said)) < (
            TOLERANCE
        )
    check(ours.propagate(5), {1: oracle.go(5)})
    check(ours.propagate(12, reverse=True), {1: oracle.go(12, reverse=True)})

"""Whole clips on every backend of bundles: the demo model tracks as it does in PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import vkrt
from vkrt.demo.clips import Clip, make_clip
from vkrt.engines.sam2_image import Segmenter
from vkrt.exporting import export_model

RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}
MODEL = "sam2.1-nano"
SEED, SIDE = 12, 128
IMAGE_SIZE = 128  # of the model
CORRECTED = 8
# The bar of the parity with transformers too.
TOLERANCE = 1e-3


def tracked(sam: Segmenter, clip: Clip) -> dict[tuple[int, int], np.ndarray]:
    """Return the logits of each frame and object, tracked forwards and then backwards.

    One object is clicked and corrected, one has a box in the middle of the clip, one a mask.
    """
    last = len(clip.frames) - 1
    largest = np.argsort(-clip.areas()[0], kind="stable")[:3] + 1
    with sam.track(clip.frames) as track:
        rows, columns = np.nonzero(clip.labels[0] == largest[0])
        middle = len(rows) // 2
        track.prompt(frame=0, obj=1, points=[[int(columns[middle]), int(rows[middle])]])
        rows, columns = np.nonzero(clip.labels[last // 2] == largest[1])
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        track.prompt(frame=last // 2, obj=2, box=[int(side) for side in box])
        track.prompt(frame=0, obj=3, mask=clip.labels[0] == largest[2])
        if last > CORRECTED:
            rows, columns = np.nonzero(clip.labels[CORRECTED] == largest[0])
            spot = [int(columns[-1]), int(rows[-1])]
            track.prompt(frame=CORRECTED, obj=1, points=[spot])
        found = {}
        for reverse in (False, True):
            for frame in track.propagate(reverse=reverse):
                for obj, logits in zip(frame.obj_ids, frame.logits, strict=True):
                    found[frame.frame, obj] = logits
    return found


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle in fp32 of the model at a small size."""
    folder = tmp_path_factory.mktemp("bundles") / "nano"
    export_model(MODEL, folder, image_size=IMAGE_SIZE)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("backend", RUNTIMES)
def test_a_clip_is_tracked_as_in_pytorch(backend: str, exported: Path) -> None:
    pytest.importorskip(RUNTIMES[backend])
    clip = make_clip(SEED, SIDE, 24)
    with vkrt.load(MODEL, backend="eager", image_size=IMAGE_SIZE) as sam:
        wanted = tracked(sam, clip)
    with vkrt.load(exported, backend=backend) as sam:
        assert sam.backend == backend
        found = tracked(sam, clip)
    assert found.keys() == wanted.keys() and len(found) == 3 * len(clip.frames)
    # Where the model sees no object, all logits are one number.
    assert sum(np.ptp(logits) > 0.1 for logits in wanted.values()) >= 24
    worst = {key: float(np.abs(found[key] - wanted[key]).max()) for key in wanted}
    assert max(worst.values()) < TOLERANCE, worst


@pytest.mark.parametrize(
    ("frames", "backend"),
    [(4, "onnx"), *(pytest.param(24, name, marks=pytest.mark.slow) for name in RUNTIMES)],
)
def test_the_packaged_model_tracks_as_in_pytorch(frames: int, backend: str) -> None:
    """Its bundle holds constants of an export in fp16, so that logits are off by some 1e-3."""
    pytest.importorskip(RUNTIMES[backend])
    clip = make_clip(SEED, SIDE, frames)
    with vkrt.load(MODEL, backend="eager") as sam:
        wanted = tracked(sam, clip)
    with vkrt.load(MODEL, backend=backend) as sam:
        found = tracked(sam, clip)
    assert found.keys() == wanted.keys()
    # The model sees the objects: empty masks would agree as well.
    assert all((logits > 0).any() for (frame, _), logits in wanted.items() if frame == 0)
    apart = np.mean([((found[key] > 0) != (wanted[key] > 0)).mean() for key in wanted])
    assert apart < 1e-3

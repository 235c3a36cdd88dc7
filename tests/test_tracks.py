"""tracks.json: masks, scores and boxes come back as they were, and the file is whole."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vkrt.errors import ImageError, OutputError, VideoError
from vkrt.media.rle import Rle, decode
from vkrt.media.tracks import TracksWriter


def some_masks(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 12, 17)) < 0.3


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "tracks.json"
    stacks = {0: some_masks(2), 5: some_masks(1, 1), 3: some_masks(3, 2)}
    with TracksWriter(path, fps=23.976) as tracks:
        for frame, masks in stacks.items():
            ids = np.arange(10, 10 + len(masks))
            tracks.write(frame, ids, masks, np.linspace(0.1, 0.9, len(masks)), [2.5] * len(masks))
    found = read(path)
    assert found["size"] == [12, 17] and found["fps"] == 23.976
    assert [each["frame"] for each in found["frames"]] == [0, 5, 3]
    for each, masks in zip(found["frames"], stacks.values(), strict=True):
        objects = each["objects"]
        assert [item["id"] for item in objects] == list(range(10, 10 + len(masks)))
        assert np.array_equal(decode([Rle.from_coco(item["mask"]) for item in objects]), masks)
        assert [item["area"] for item in objects] == masks.sum((1, 2)).tolist()
        assert {item["object_score"] for item in objects} == {2.5}
        assert objects[0]["score"] == 0.1
    assert len(path.read_text().splitlines()) == 3 + 2  # a line for each frame
    assert os.listdir(tmp_path) == ["tracks.json"]


def test_boxes(tmp_path: Path) -> None:
    masks = np.zeros((2, 12, 17), bool)
    masks[0, 2:5, 7:16] = True
    with TracksWriter(tmp_path / "tracks.json") as tracks:
        tracks.write(0, [1, 2], masks, [0.5, math.nan], [math.inf, -3])
    first, second = read(tmp_path / "tracks.json")["frames"][0]["objects"]
    assert first["box"] == [7, 2, 9, 3] and first["object_score"] is None
    assert second["box"] is None and second["score"] is None and second["area"] == 0


def test_frames_without_objects(tmp_path: Path) -> None:
    with TracksWriter(tmp_path / "tracks.json") as tracks:
        tracks.write(0, [], some_masks(0), [], [])
        tracks.write(1, [1], some_masks(1), [0.5], [1.0])
    frames = read(tmp_path / "tracks.json")["frames"]
    assert frames[0] == {"frame": 0, "objects": []} and len(frames[1]["objects"]) == 1


def test_no_frames(tmp_path: Path) -> None:
    with TracksWriter(tmp_path / "tracks.json"):
        pass
    assert read(tmp_path / "tracks.json") == {"size": None, "fps": None, "frames": []}


def test_a_wrong_frame_does_not_spoil_the_file(tmp_path: Path) -> None:
    path = tmp_path / "tracks.json"
    with TracksWriter(path) as tracks:
        tracks.write(0, [1], some_masks(1), [0.5], [1.0])
        with pytest.raises(VideoError, match="needs an id, a mask and two scores"):
            tracks.write(1, [1, 2], some_masks(1), [0.5], [1.0])
        with pytest.raises(VideoError, match="masks of frame 1 are 9x8, unlike"):
            tracks.write(1, [1], np.zeros((1, 8, 9), bool), [0.5], [1.0])
        with pytest.raises(ImageError, match="masks must have shape"):
            tracks.write(1, [1], np.zeros((8, 9), bool), [0.5], [1.0])
        tracks.write(2, [1], some_masks(1), [0.5], [1.0])
    assert [each["frame"] for each in read(path)["frames"]] == [0, 2]
    with pytest.raises(VideoError, match="is closed; open another"):
        tracks.write(3, [1], some_masks(1), [0.5], [1.0])


def test_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "tracks.json"
    path.write_text("old")
    with pytest.raises(KeyError), TracksWriter(path) as tracks:
        tracks.write(0, [1], some_masks(1), [0.5], [1.0])
        raise KeyError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["tracks.json"]
    with pytest.raises(OutputError, match="does not exist; make it"):
        TracksWriter(tmp_path / "none" / "tracks.json")

"""Label maps: one number a pixel, with the palette that DAVIS has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from vkrt.errors import ImageError, OutputError, VideoError
from vkrt.media.labels import label_map, palette, read_labels, write_labels


def test_palette_is_that_of_voc() -> None:
    colours = palette()
    assert colours.shape == (256, 3) and colours.dtype == np.uint8
    # As the PASCAL VOC development kit lists them.
    assert colours[:9].tolist() == [
        *([0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128]),
        *([0, 128, 128], [128, 128, 128], [64, 0, 0]),
    ]
    assert colours[20].tolist() == [0, 64, 128] and colours[255].tolist() == [224, 224, 192]
    assert len({tuple(colour) for colour in colours.tolist()}) == 256


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)))
@settings(max_examples=10, deadline=None)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, labels: np.ndarray) -> None:
    path = tmp_path_factory.mktemp("labels") / "00000.png"
    write_labels(path, labels)
    assert np.array_equal(read_labels(path), labels)
    with Image.open(path) as picture:
        assert picture.mode == "P"
        assert np.array_equal(np.asarray(picture.convert("RGB")), palette()[labels])


@given(st.permutations([2, 7, 255]))
@settings(deadline=None)
def test_the_lowest_id_is_seen(ids: list[int]) -> None:
    masks = np.zeros((3, 4, 6), bool)
    for mask, number in zip(masks, ids, strict=True):
        mask[:, {2: slice(0, 2), 7: slice(1, 4), 255: slice(3, 5)}[number]] = True
    labels = label_map(masks, ids)
    assert labels.dtype == np.uint8 and labels.tolist() == [[2, 2, 7, 7, 255, 0]] * 4


def test_no_objects() -> None:
    assert label_map(np.zeros((0, 3, 4), bool), []).tolist() == [[0] * 4] * 3


@pytest.mark.parametrize("ids", [[0, 1], [1, 256], [-1, 2], [1, 1], [1], [1, 2, 3]])
def test_ids_that_do_not_fit(ids: list[int]) -> None:
    with pytest.raises(VideoError, match="ids"):
        label_map(np.zeros((2, 3, 4), bool), ids)


def test_masks_that_are_none() -> None:
    wrong: Any = np.zeros((3, 4), bool)
    with pytest.raises(ImageError, match="masks must have shape"):
        label_map(wrong, [1])


def test_files_that_can_not_be(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist; make it"):
        write_labels(tmp_path / "none" / "0.png", np.zeros((2, 2), np.uint8))
    (tmp_path / "text.png").write_text("text")
    Image.new("RGB", (3, 3)).save(tmp_path / "colour.png")
    for name in ("none.png", "text.png", "colour.png"):
        with pytest.raises(ImageError, match=r"; give a PNG") as caught:
            read_labels(tmp_path / name)
        assert "\n" not in str(caught.value)

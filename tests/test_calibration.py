"""What int8 is calibrated on: scenes, and a folder of photos that somebody named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vkrt.cli import main
from vkrt.errors import ImageError
from vkrt.export.int8.calibration import MOST_PHOTOS, find_photos, photo_inputs, scene_inputs


def test_a_folder_of_photos(tmp_path: Path, photo: np.ndarray) -> None:
    for index in range(MOST_PHOTOS + 6):
        Image.fromarray(photo[index:]).save(tmp_path / f"{index:02}.png")
    (tmp_path / "notes.txt").write_text("not a photo")
    Image.fromarray(photo).save(tmp_path / "99.JPG")
    found = find_photos(tmp_path)
    assert len(found) == MOST_PHOTOS and found == sorted(found)
    assert found[0].name == "00.png" and found[-1].name > "28"
    arrays = list(photo_inputs(found[:2], 64))
    assert [array.shape for array in arrays] == [(1, 3, 64, 64)] * 2
    assert not np.array_equal(*arrays)
    one, two, again = (next(scene_inputs(range(s, s + 1), 64)) for s in (1, 2, 1))
    assert one.shape == (1, 3, 64, 64) and np.array_equal(one, again)
    assert not np.array_equal(one, two)


@pytest.mark.parametrize("kind", ["nowhere", "a file", "empty", "damaged"])
def test_a_bad_folder_of_photos_gets_one_line(
    kind: str, tmp_path: Path, photo: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    if kind == "a file":
        folder.write_text("x")
    elif kind != "nowhere":
        folder.mkdir()
    if kind == "damaged":
        Image.fromarray(photo).save(folder / "a.png")
        (folder / "b.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more than this")
    with pytest.raises(ImageError, match="b.jpg" if kind == "damaged" else "photos"):
        find_photos(folder)
    arguments = ["sam2.1-nano", "--precision", "int8", "--calibration", str(folder)]
    code = main.main(["export", *arguments, "--out", str(tmp_path / "b")])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "") and err.count("\n") == 1 and "photo" in err
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("option", [["--allow-loss"], ["--calibration", "."]])
def test_what_only_int8_takes(
    option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main.main(["export", "sam2.1-nano", *option, "--out", str(tmp_path / "b")])
    assert code == 2 and "--precision int8" in capsys.readouterr().err

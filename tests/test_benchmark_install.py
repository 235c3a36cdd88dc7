"""The measurement of installs: what it runs, what it counts and what it refuses."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

from benchmarks import install
from benchmarks.install import INSTALLS, InstallRow, Place, check_agreement, make_row, size_of
from benchmarks.results import append_rows, columns, read_rows

VERSIONS = {"torch": None, "onnxruntime": "1.2", "numpy": "2.0"}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Return a path's place with figures in it."""
    report = {"backend": "onnx", "photo": {"width": 120, "height": 90}}
    seconds, mask = [1.0, 3.0, 2.0], np.eye(9, dtype=bool)
    return Place("torch-free", tmp_path, [500, 300], 4000, 12.5, seconds, report, mask)


def test_only_files_count_and_each_once(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").write_bytes(b"12345")
    (tmp_path / "other").write_bytes(b"678")
    (tmp_path / "link").symlink_to(tmp_path / "other")
    (tmp_path / "folder").symlink_to(tmp_path / "a")
    assert size_of(tmp_path) == 8


def test_a_row_says_what_was_measured(place: Place, tmp_path: Path) -> None:
    wheel = tmp_path / "v.whl"
    wheel.write_bytes(b"1234567")
    row = make_row(place, wheel, VERSIONS)  # type: ignore[arg-type]
    assert (row.files, row.download_bytes, row.own_bytes) == (2, 800, 7)
    assert (row.first_mask_p50_s, row.rounds, row.photo) == (2.0, 3, "120x90")
    assert (row.path, row.extras, row.backend) == ("torch-free", "cpu,demo", "onnx")
    append_rows(tmp_path / "rows.csv", [row])
    (read,) = read_rows(tmp_path / "rows.csv", InstallRow)
    assert (read["installed_bytes"], read["install_s"], read["torch"]) == ("4000", "12.5", "")


def test_masks_must_be_there_and_agree(place: Place) -> None:
    other = Place("torch", place.folder, mask=~np.eye(9, dtype=bool))
    check_agreement([place, place])
    with pytest.raises(RuntimeError, match=r"torch and torch-free have an IoU of only 0\.000"):
        check_agreement([place, other])
    for mask in (None, np.zeros((9, 9), bool)):
        other.mask = mask
        for pair in ([place, other], [other, place]):
            with pytest.raises(RuntimeError, match="torch gave an empty mask"):
                check_agreement(pair)


def test_download_and_install_are_apart_and_without_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def run(*command: Any, cwd: Path, **_: str) -> str:
        asked.append([*map(str, command)])
        if "download" in command:
            (tmp_path / "files").mkdir()
            (tmp_path / "files/a.whl").write_bytes(b"123")
        if "install" in command:
            (tmp_path / "venv").mkdir()
            (tmp_path / "venv/module.py").write_bytes(b"12345")
        return ""

    monkeypatch.setattr(install, "run", run)
    place = Place("torch", tmp_path)
    install.install(place, tmp_path / "vkrt.whl")
    _, download, installed = asked
    for command in (download, installed):
        assert "--no-cache-dir" in command and "constraints.txt" in command
        assert command[-1] == f"vkrt[torch,demo] @ {(tmp_path / 'vkrt.whl').as_uri()}"
    assert "--no-index" in installed and "--no-index" not in download
    assert (place.download, place.installed_bytes) == ([3], 5) and place.install_s > 0


def test_a_mask_is_timed_until_it_is_written(tmp_path: Path, photo: np.ndarray) -> None:
    Image.fromarray(photo).save(tmp_path / "photo.png")
    (tmp_path / "venv/bin").mkdir(parents=True)
    script = tmp_path / "venv/bin/vkrt"
    script.symlink_to(Path(sys.executable).with_name("vkrt"))
    place = Place("torch-free", tmp_path)
    install.first_mask(place, tmp_path / "photo.png", "70,40")
    assert place.report["photo"] == {
        "file": str(tmp_path / "photo.png"),
        "width": 120,
        "height": 90,
    }
    assert place.mask is not None and place.mask.shape == (90, 120) and place.mask[40, 70]
    assert 0 < place.seconds[0] < 600


def test_what_is_wrong_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="gave 3: no such thing"):
        code = "import sys; print('no such\\nthing', file=sys.stderr); sys.exit(3)"
        install.run(sys.executable, "-c", code, cwd=tmp_path)

    def fail(into: Path) -> Path:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(install, "build_wheel", fail)
    for paths, words in (("tourch", "unknown paths tourch"), ("torch", "no compiler")):
        with pytest.raises(typer.Exit) as left:
            install.main(paths, rounds=1, photo=None, dry=True)
        assert left.value.exit_code == 2 and words in capsys.readouterr().err


@pytest.mark.skipif(not INSTALLS.exists(), reason="nothing was measured yet")
def test_the_file_in_the_tree_has_the_columns_of_the_code() -> None:
    with INSTALLS.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == columns(InstallRow)
    assert all(len(row) == len(rows[0]) for row in rows)

"""The measurement of first starts: what a row says, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.first_use import FIRST_USE, FirstUseRow, Runner, agreement, bars_of, make_rows
from benchmarks.results import append_rows, columns, read_rows
from vkrt import catalog


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Runner, Runner]:
    """Return ours and the peer with figures in them."""
    mask = np.eye(9, dtype=bool)
    ours = Runner("vkrt", [], tmp_path / "a.png", None, False, [1.0, 3.0, 6.0], [2.0] * 3)
    peer = Runner("transformers", [], tmp_path / "b.png", None, False, [2.0, 2.0, 2.0], [4.0] * 3)
    ours.mask, peer.mask = mask, mask
    return ours, peer


def test_rows_pair_each_round(pair: tuple[Runner, Runner], tmp_path: Path) -> None:
    rows = make_rows("first", pair, catalog.find("sam2.1-tiny"), "120x90", 12.5)
    ours, peer = rows
    assert (ours.p50_s, ours.paired_ratio, ours.cpu_ratio, ours.export_s) == (3.0, 1.5, 0.5, 12.5)
    assert (peer.p50_s, peer.paired_ratio, peer.cpu_ratio, peer.export_s) == (2.0, 1.0, 1.0, None)
    assert (ours.case, ours.image_size, ours.rounds, ours.iou) == ("first", 1024, 3, 1.0)
    append_rows(tmp_path / "rows.csv", rows)
    assert [row["variant"] for row in read_rows(tmp_path / "rows.csv", FirstUseRow)] == [
        *("vkrt", "transformers")
    ]


def test_the_first_command_alone_has_a_bar(pair: tuple[Runner, Runner]) -> None:
    rows = make_rows("first", pair, catalog.find("sam2.1-tiny"), "120x90", None)
    (bar,) = bars_of(rows)
    assert (bar.figure, bar.must, bar.bar, bar.verdict) == (1.5, "at most", 1.3, "missed")
    (bar,) = bars_of([replace(rows[0], paired_ratio=1.3)])
    assert bar.verdict == "reached" and not bars_of([replace(row, case="second") for row in rows])


def test_masks_must_be_there_and_agree(pair: tuple[Runner, Runner]) -> None:
    ours, peer = pair
    assert agreement(ours, peer) == 1.0
    ours.mask = ~np.eye(9, dtype=bool)
    with pytest.raises(RuntimeError, match=r"IoU of only 0\.000"):
        agreement(ours, peer)
    for empty in (None, np.zeros((9, 9), bool)):
        ours.mask = empty
        with pytest.raises(RuntimeError, match="empty mask"):
            agreement(ours, peer)


def test_the_kept_rows_have_these_columns() -> None:
    if FIRST_USE.exists():
        assert FIRST_USE.read_text().splitlines()[0].split(",") == columns(FirstUseRow)

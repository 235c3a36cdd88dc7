"""J and F on hand-made masks, and the benchmark that measures tracking by them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import typer

from benchmarks import tracking
from benchmarks.jf import contour, contour_agreement, region_overlap
from benchmarks.results import TRACKING, TrackingRow, columns, read_rows
from benchmarks.tracking import Judged, Task
from vkrt.demo.clips import Clip
from vkrt.demo.train import FIRST_TRAINING_SEED

EMPTY = np.zeros((100, 100), bool)


def square(left: int, top: int, side: int = 20) -> np.ndarray:
    """Return a mask (100, 100) of a square."""
    mask = EMPTY.copy()
    mask[top : top + side, left : left + side] = True
    return mask


def test_j_of_squares() -> None:
    assert region_overlap(square(10, 10), square(10, 10)) == 1
    assert region_overlap(square(10, 10), square(20, 10)) == pytest.approx(1 / 3)
    assert region_overlap(square(10, 10), square(50, 50)) == 0
    assert region_overlap(EMPTY, EMPTY) == 1
    assert region_overlap(EMPTY, square(10, 10)) == region_overlap(square(10, 10), EMPTY) == 0


def test_the_contour_of_a_square() -> None:
    found = contour(square(10, 30, side=5))
    # Its last pixels, and those just before its first ones; one pixel of each corner but one.
    rows, columns_ = np.nonzero(found)
    assert (rows.min(), rows.max(), columns_.min(), columns_.max()) == (29, 34, 9, 14)
    assert found.sum() == 4 * 5
    assert not contour(EMPTY).any() and not contour(~EMPTY).any()
    half = EMPTY.copy()
    half[:, 50:] = True
    assert np.array_equal(np.flatnonzero(contour(half).any(0)), [49])


@pytest.mark.parametrize(("shift", "wanted"), [(0, 1.0), (1, 1.0), (2, 1.0), (60, 0.0)])
def test_f_of_a_shifted_square(shift: int, wanted: float) -> None:
    """The diagonal is 141 pixels, and 0.8% of it 1.13: two pixels count as found."""
    assert contour_agreement(square(10, 10), square(10 + shift, 10)) == wanted


def test_f_beyond_the_tolerance() -> None:
    """Two sides of the square lie 3 pixels off, and all but their ends count as missed."""
    found = contour_agreement(square(10, 10), square(13, 10))
    assert 0.5 < found < 0.75
    assert contour_agreement(square(10, 10), square(13, 10), tolerance=0.02) == 1


def test_f_is_the_harmonic_mean_of_precision_and_recall() -> None:
    """One of two equal squares is found: precision 1, recall one half."""
    both = square(10, 10) | square(60, 60)
    assert contour_agreement(square(10, 10), both) == pytest.approx(2 / 3)
    assert contour_agreement(both, square(10, 10)) == pytest.approx(2 / 3)


def test_f_of_empty_masks() -> None:
    assert contour_agreement(EMPTY, EMPTY) == 1
    assert contour_agreement(EMPTY, square(10, 10)) == contour_agreement(square(10, 10), EMPTY) == 0


def test_f_against_dilated_contours() -> None:
    """Masks of discs, by the definition: each contour dilated by a disc of the tolerance."""
    from scipy.ndimage import binary_dilation

    y, x = np.mgrid[:90, :120]
    reach = 2  # 0.8% of 150 pixels, rounded up
    disc = np.hypot(*np.mgrid[-reach : reach + 1, -reach : reach + 1]) <= reach
    rng = np.random.default_rng(0)
    for _ in range(10):
        one, other = (
            (x - rng.uniform(40, 60)) ** 2 + 2 * (y - rng.uniform(30, 50)) ** 2
            < rng.uniform(10, 30) ** 2
            for _ in range(2)
        )
        a, b = contour(one), contour(other)
        precision = (a & binary_dilation(b, disc)).sum() / a.sum()
        recall = (b & binary_dilation(a, disc)).sum() / b.sum()
        total = precision + recall
        wanted = 2 * precision * recall / total if total else 0.0
        assert contour_agreement(one, other) == pytest.approx(wanted)


# The benchmark.


class User:
    """Stand for a segmenter whose stream shows prepared masks and notes what it is asked."""

    name, config = "m", SimpleNamespace(image_size=64)

    def __init__(self, masks: np.ndarray) -> None:
        self.masks = masks
        self.asked: list[list[object]] = []

    def stream(self) -> User:
        self.asked.clear()
        return self

    def step(self, frame: np.ndarray, prompts: list[object]) -> SimpleNamespace:
        self.asked.append(list(prompts))
        return SimpleNamespace(obj_ids=(1,), masks=self.masks[len(self.asked) - 1][None])


def moving() -> Task:
    """Return a clip of four frames; a square moves right and has left on the last."""
    truth = np.stack([square(10 + 30 * i, 10) for i in range(3)] + [EMPTY])
    labels = (2 * truth).astype(np.uint8)
    return Task(0, Clip(np.zeros((4, 100, 100, 3), np.uint8), labels, 2), 2)


def test_one_click_on_the_first_frame_and_all_frames_count() -> None:
    task = moving()
    truth = task.clip.labels == 2
    user = User(truth)
    judged = tracking.follow(user, task)  # type: ignore[arg-type]
    assert judged.means() == {"J": 1, "F": 1, "J&F": 1}
    assert [len(prompts) for prompts in user.asked] == [1, 0, 0, 0]
    (prompt,) = user.asked[0]
    ((x, y),) = prompt.points  # type: ignore[attr-defined]
    assert prompt.labels == [1] and truth[0, y, x] and abs(x - 20) <= 1  # type: ignore[attr-defined]
    still = tracking.follow(User(truth[[0, 0, 0, 0]]), task)  # type: ignore[arg-type]
    assert still.overlap.tolist() == still.agreement.tolist() == [1, 0, 0, 0]


def test_held_out_clips_have_a_target_and_seeds_below_those_of_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracking, "SIDE", 48)
    tasks = tracking.held_out(3)
    seeds = []
    for task in (next(tasks) for _ in range(6)):
        assert (task.clip.labels[0] == task.target).any() and len(task.clip.frames) == 3
        seeds.append(task.seed)
    assert seeds == sorted(set(seeds)) and seeds[-1] < FIRST_TRAINING_SEED
    monkeypatch.setattr(tracking, "FIRST_TRAINING_SEED", 4)
    assert all(task.seed < 4 for task in tracking.held_out(3))


def test_rows_of_tracking(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"abc")
    judged = [
        Judged(np.array([1.0, 0.8]), np.array([0.9, 0.9])),
        Judged(np.array([0.5, 0.5]), np.array([0.7, 0.7])),
    ]
    rows = tracking.make_rows(User(EMPTY), tmp_path / "weights", judged, skipped=3)  # type: ignore[arg-type]
    assert {row.measure: round(row.mean, 6) for row in rows} == {"J": 0.7, "F": 0.8, "J&F": 0.75}
    both = rows[-1]
    assert (both.clips, both.skipped, both.frames, both.bar) == (2, 3, 2, 0.75)
    assert both.checkpoint == "ba7816bf8f01cfea"
    assert not any(map(tracking.is_below, [replace(row, mean=0.7500001) for row in rows]))
    assert [row.measure for row in rows if tracking.is_below(replace(row, mean=0.7))] == ["J&F"]
    assert tracking.is_below(replace(both, mean=float("nan")))


def test_tracking_runs_and_fails_an_untrained_model(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pico: str,
    pico_checkpoint: Path,
) -> None:
    monkeypatch.setattr(tracking, "TRACKING", tmp_path / "tracking.csv")
    for dry in (True, False):
        with pytest.raises(typer.Exit) as left:
            tracking.main(pico, pico_checkpoint, clips=2, frames=3, dry=dry)
        assert left.value.exit_code == 1
        assert (tmp_path / "tracking.csv").exists() is not dry
    rows = read_rows(tmp_path / "tracking.csv", TrackingRow)
    assert [row["measure"] for row in rows] == list(tracking.BARS)
    assert "below" in capsys.readouterr().out


def test_tracking_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as left:
        tracking.main("sam2.1-nano", tmp_path / "absent.pt", clips=2, frames=2, dry=True)
    assert left.value.exit_code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_the_file_in_the_tree_has_the_columns_of_the_code() -> None:
    if not TRACKING.exists():
        pytest.skip("no model's tracking was measured yet")
    assert TRACKING.read_text().splitlines()[0].split(",") == columns(TrackingRow)

"""The benchmarks measure what they say: interleaving, rows, the simulated user."""

from __future__ import annotations

import csv
import gc
from collections.abc import Callable
from dataclasses import astuple, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from safetensors.torch import save_file

from benchmarks import quality, results
from benchmarks.clicks import correction, deepest
from benchmarks.machine import commit
from benchmarks.measure import compare, measure, rotated, summarize
from benchmarks.quality import Score
from benchmarks.results import BarRow, QualityRow, SpeedRow, append_rows, columns, read_rows
from vkrt import catalog
from vkrt.demo.scenes import Scene, make_scene
from vkrt.demo.train import FIRST_TRAINING_SEED
from vkrt.models.sam2.model import Sam2


class Clock:
    """Count seconds that only the calls spend."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def job(self, name: str, seconds: float) -> Callable[[], object]:
        """Return a call that takes so long."""

        def call() -> object:
            self.log.append(name)
            self.now += seconds
            return object()

        return call


# Timing.


def test_measure_interleaves_in_rotated_order() -> None:
    clock = Clock()
    calls = {"a": clock.job("a", 1.0), "b": clock.job("b", 3.0)}
    samples = measure(calls, rounds=3, warmups=2, clock=clock)
    assert samples == {"a": [1.0] * 3, "b": [3.0] * 3}
    assert clock.log == ["a", "b"] * 2 + ["a", "b", "b", "a", "a", "b"]


def test_measure_holds_the_garbage_collector_only_while_timing() -> None:
    seen: list[bool] = []
    assert gc.isenabled()
    measure({"a": lambda: seen.append(gc.isenabled())}, rounds=2, warmups=1)
    assert seen == [True, False, False]
    assert gc.isenabled()

    def fail() -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        measure({"a": fail}, rounds=1, warmups=0)
    assert gc.isenabled()


def test_every_name_leads_equally_often() -> None:
    names = ["a", "b", "c"]
    turns = [rotated(names, turn) for turn in range(6)]
    assert [turn[0] for turn in turns] == ["a", "b", "c"] * 2
    assert all(sorted(turn) == names for turn in turns)


def test_summary_is_in_milliseconds() -> None:
    summary = summarize([0.001 * n for n in range(1, 12)])
    assert astuple(summary)[:4] == pytest.approx((3.0, 6.0, 9.0, 11))


def test_p99_needs_samples_enough() -> None:
    assert summarize([0.001] * 298).p99 is None
    assert summarize([0.001] * 296 + [0.005] * 4).p99 == pytest.approx(5.0)


def test_measure_lets_others_come_to_rest_outside_the_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    rest = clock.job("pause", 7.0)
    monkeypatch.setattr("time.sleep", lambda seconds: rest())
    samples = measure({"a": clock.job("a", 1.0)}, rounds=2, warmups=1, clock=clock, pause=0.1)
    assert samples == {"a": [1.0, 1.0]}
    assert clock.log == ["a", "pause", "a", "pause", "a"]


def test_paired_ratio_ignores_what_slows_both() -> None:
    baseline = [1.0, 1.0, 10.0, 10.0, 10.0]
    ratio = compare([2 * s for s in baseline], baseline)
    assert astuple(ratio) == pytest.approx((2.0, 2.0, 2.0, 2.0))
    # Three rounds at 2x and two at 3x.
    uneven = compare([2.0, 3.0, 20.0, 20.0, 30.0], baseline)
    assert uneven.paired == pytest.approx(2.0)
    assert uneven.paired_p80 > uneven.paired


# Rows.


def speed_row() -> SpeedRow:
    """Return a row with a value of its own in every column."""
    values = {
        field.name: {"str": field.name, "int": number, "float": number + 0.123456789}.get(
            str(field.type).removesuffix(" | None")
        )
        for number, field in enumerate(fields(SpeedRow))
    }
    return SpeedRow(**values)  # type: ignore[arg-type]


def test_rows_come_back_as_written(tmp_path: Path) -> None:
    path, row = tmp_path / "rows.csv", speed_row()
    append_rows(path, [row, replace(row, peak_rss_mib=None)])
    append_rows(path, [replace(row, cpu="A, B")])
    found = read_rows(path, SpeedRow)
    assert len(found) == 3
    for name, value in zip(columns(SpeedRow), astuple(row), strict=True):
        wanted = pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
        assert type(value)(found[0][name]) == wanted
    assert found[1]["peak_rss_mib"] == ""
    assert found[2]["cpu"] == "A, B"


def test_appending_keeps_one_header_and_refuses_another(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.touch()
    append_rows(path, [speed_row()])
    append_rows(path, [speed_row()])
    before = path.read_text()
    assert [line.split(",")[2:4] for line in before.splitlines()] == [["case", "model"]] * 3
    assert before.count(",".join(columns(SpeedRow))) == 1
    quality_row = QualityRow("d", "c", "m", "f", 1, 0, "box", 0.5, 0.1, 0.6, None, 0.88)
    with pytest.raises(ValueError, match="move it aside"):
        append_rows(path, [quality_row])
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("path", "kind"),
    [(results.RESULTS, SpeedRow), (results.QUALITY, QualityRow), (results.BARS, BarRow)],
)
def test_the_files_in_the_tree_have_the_columns_of_the_code(path: Path, kind: type) -> None:
    if not path.exists():
        pytest.skip(f"nothing was measured for {path.name} yet")
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == columns(kind)
    assert all(len(row) == len(rows[0]) for row in rows)


def test_rows_do_not_name_the_machine() -> None:
    assert not {"host", "hostname", "node", "user", "path"} & set(columns(SpeedRow))
    assert commit() == "unknown" or len(commit().removesuffix("-dirty")) == 12


# The simulated user.


def test_deepest_is_the_middle() -> None:
    region = np.zeros((40, 60), bool)
    region[10:21, 30:51] = True
    region[2, 2] = True
    x, y, reach = deepest(region)
    assert (y, reach) == (15, 6.0) and 35 <= x <= 45


def test_the_border_of_the_picture_counts_as_outside() -> None:
    region = np.zeros((30, 30), bool)
    region[:, :9] = True
    x, y, reach = deepest(region)
    assert (x, reach) == (4, 5.0) and 4 <= y <= 25


def test_nothing_is_deepest_nowhere() -> None:
    assert deepest(np.zeros((5, 5), bool))[2] == 0


def test_correction_clicks_the_deeper_error() -> None:
    wanted = np.zeros((40, 40), bool)
    wanted[5:16, 5:16] = True
    shown = np.zeros_like(wanted)
    shown[30:35, 20:40] = True  # superfluous: more pixels than 5 x 5, but less deep than 11 x 11
    assert correction(shown, wanted) == (10, 10, 1)
    shown |= wanted
    x, y, label = correction(shown, wanted) or (0, 0, 1)
    assert label == 0 and shown[y, x] and not wanted[y, x]
    assert correction(wanted, wanted) is None


def test_clicks_fall_inside_any_region() -> None:
    for seed in range(10):
        scene = make_scene(seed, 96)
        for label in range(1, scene.count + 1):
            mask = scene.labels == label
            x, y, reach = deepest(mask)
            assert mask[y, x] and reach >= 1


# Quality.


def test_held_out_seeds_are_not_those_of_training() -> None:
    assert max(quality.held_out(500)) < FIRST_TRAINING_SEED
    assert max(quality.held_out(FIRST_TRAINING_SEED)) < FIRST_TRAINING_SEED
    for count in (0, -1, FIRST_TRAINING_SEED + 1):
        with pytest.raises(ValueError, match="scenes must be"):
            quality.held_out(count)


def test_the_object_is_large_enough_and_always_the_same() -> None:
    for seed in range(20):
        scene = make_scene(seed, 96)
        mask = quality.choose_object(scene, seed)
        if mask is not None:
            assert mask.mean() >= quality.MIN_SHARE
            assert np.array_equal(mask, quality.choose_object(scene, seed))
    labels = np.zeros((100, 100), np.int16)
    labels[0, :49] = 1
    assert quality.choose_object(Scene(np.zeros((100, 100, 3), np.uint8), labels, 1), 0) is None


class Answer:
    """Stand for Masks."""

    def __init__(self, masks: np.ndarray, scores: list[float]) -> None:
        self.masks, self.scores = masks, np.array(scores)
        self.logits = np.where(masks, 5.0, -5.0)

    @property
    def best(self) -> int:
        return int(self.scores.argmax())


class User:
    """Stand for an embedding that shows half of the object until it is corrected."""

    def __init__(self, wanted: np.ndarray) -> None:
        self.wanted = wanted
        self.half = wanted.copy()
        self.half[:, wanted.shape[1] // 2 :] = False
        self.asked: list[dict[str, object]] = []

    def predict(self, **prompt: object) -> Answer:
        self.asked.append({k: np.copy(v) if k == "points" else v for k, v in prompt.items()})
        if prompt["multimask"]:
            return Answer(np.stack([~self.wanted, self.half, self.wanted]), [0.1, 0.7, 0.2])
        return Answer(self.wanted[None], [0.75])


def test_protocol_takes_the_predicted_best_and_corrects_it() -> None:
    wanted = np.zeros((64, 64), bool)
    wanted[20:40, 12:52] = True
    user = User(wanted)
    scores = quality.ask_all(user, wanted)  # type: ignore[arg-type]
    assert list(scores) == list(quality.BARS)
    assert scores["one click"] == Score(0.5, 0.7)
    assert scores["one click, ideal choice"] == Score(1.0)
    assert scores["three clicks"] == Score(1.0, 0.75)
    boxed, first, second = user.asked  # the second click already mended everything
    assert boxed["box"] == (12, 20, 52, 40) and not boxed["multimask"]
    assert np.shape(first["points"]) == (1, 2) and first["multimask"]
    assert np.shape(second["points"]) == (2, 2) and not second["multimask"]
    (x, y), shown = second["points"][1], np.asarray(second["mask"]) > 0  # type: ignore[index]
    assert wanted[y, x] and not shown[y, x] and np.array_equal(shown, user.half)


def test_rows_of_quality(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"abc")
    scores = {kind: [Score(0.9, 0.8), Score(0.7, 0.8)] for kind in quality.BARS}
    scores["one click, ideal choice"] = [Score(0.9), Score(0.9)]
    rows = quality.make_rows("m", tmp_path / "weights", scores, skipped=3)
    first = {row.kind: row for row in rows}["one click"]
    assert first.mean == pytest.approx(0.8) and first.calibration == pytest.approx(0.1)
    assert (first.scenes, first.skipped, first.checkpoint) == (2, 3, "ba7816bf8f01cfea")
    below = [row.kind for row in rows if quality.is_below(row)]
    assert below == ["three clicks", "box"]
    assert quality.is_below(replace(first, mean=float("nan")))


def test_quality_runs_and_fails_an_untrained_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    weights = Sam2(catalog.find("sam2.1-nano").config).state_dict()
    save_file({k: v.contiguous() for k, v in weights.items()}, tmp_path / "n.safetensors")
    monkeypatch.setattr(quality, "QUALITY", tmp_path / "quality.csv")
    for dry in (True, False):
        with pytest.raises(typer.Exit) as left:
            quality.main("sam2.1-nano", tmp_path / "n.safetensors", scenes=3, dry=dry)
        assert left.value.exit_code == 1
        assert (tmp_path / "quality.csv").exists() is not dry
    rows = read_rows(tmp_path / "quality.csv", QualityRow)
    assert [row["kind"] for row in rows] == list(quality.BARS)
    assert "below" in capsys.readouterr().out


def test_quality_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as left:
        quality.main("sam2.1-nano", tmp_path / "absent.pt", scenes=3, dry=True)
    assert left.value.exit_code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1

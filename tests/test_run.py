"""A course of training: when it logs, when it saves, where it stops and goes on."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from vkrt.demo.run import CHECKPOINT, Course, State, take_steps


class Untrained(State):
    """A state of a run without a model, which notes at which steps it was saved."""

    def __init__(self) -> None:
        super().__init__(model=None, averaged=None, optimizers=[])  # type: ignore[arg-type]
        self.saved: list[int] = []

    def save(self, path: Path) -> None:
        assert path.name == CHECKPOINT
        self.saved.append(self.step)


def stepper(state: State) -> Callable[[], dict[str, float]]:
    """Return what takes a step whose loss is its number."""

    def advance() -> dict[str, float]:
        state.step += 1
        return {"loss": float(state.step)}

    return advance


def mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {"loss": sum(row["loss"] for row in rows) / len(rows)}


def run(state: State, out: Path, until: int | None = None) -> None:
    course = Course(steps=10, until=until, log_every=3, save_every=4, drawn=("clips", 2))
    take_steps(state, out, course, stepper(state), mean)


def curve(out: Path) -> list[tuple[int, float]]:
    with (out / "curve.csv").open() as file:
        return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]


def test_it_logs_means_and_saves_in_their_rhythm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = Untrained()
    run(state, tmp_path)
    assert state.step == 10
    assert curve(tmp_path) == [(3, 2.0), (6, 5.0), (9, 8.0)]
    # At the end whatever the rhythm, so that nothing is lost.
    assert state.saved == [4, 8, 10]
    lines = capsys.readouterr().out.splitlines()
    assert [line.rsplit(" ", 1)[1] for line in lines] == ["clips=6", "clips=12", "clips=18"]


def test_it_stops_and_goes_on(tmp_path: Path) -> None:
    state = Untrained()
    run(state, tmp_path, until=5)
    assert (state.step, state.saved) == (5, [4, 5])
    run(state, tmp_path, until=99)
    assert (state.step, state.saved) == (10, [4, 5, 8, 10])
    # What the first part had not logged yet is gone: its row is of the steps since.
    assert curve(tmp_path) == [(3, 2.0), (6, 6.0), (9, 8.0)]
    run(state, tmp_path)
    assert (state.step, state.saved[-1]) == (10, 10)

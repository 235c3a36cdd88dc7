"""Programs of stages: each prepared once, however many threads ask, and none after the end."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from vkrt.backends.fake import FakeBackend
from vkrt.engines.programs import Programs
from vkrt.errors import BackendError
from vkrt.stage import Program, Stage

STAGES = {name: Stage(name, None, (), ()) for name in ("first", "second", "third")}


class SlowBackend(FakeBackend):
    """Note which stages are prepared, each of which takes a while."""

    def __init__(self) -> None:
        super().__init__()
        self.prepared: list[str] = []

    def prepare(self, stage: Stage) -> Program:
        self.prepared.append(stage.name)
        time.sleep(0.05)
        return super().prepare(stage)


def test_only_what_is_asked_for_is_prepared() -> None:
    backend = SlowBackend()
    programs = Programs(STAGES, backend, ("second",))
    assert backend.prepared == ["second"]
    assert programs["first"] is programs["first"]
    assert programs["second"] is programs["second"]
    assert backend.prepared == ["second", "first"]


def test_threads_that_ask_at_once_get_one_program() -> None:
    backend, count = SlowBackend(), 8
    programs, together = Programs(STAGES, backend), threading.Barrier(count)

    def ask(_: int) -> Program:
        together.wait()
        return programs["third"]

    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(ask, range(count)))
    assert backend.prepared == ["third"]
    assert len(set(map(id, found))) == 1


def test_a_failure_is_told_each_time_and_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = SlowBackend()
    programs = Programs(STAGES, backend)

    def fail(stage: Stage) -> Program:
        raise BackendError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(backend, "prepare", fail)
        for _ in range(2):
            with pytest.raises(BackendError, match="no memory"):
                programs["first"]
    assert programs["first"]() == ()


def test_nothing_is_prepared_once_closed() -> None:
    backend = SlowBackend()
    programs = Programs(STAGES, backend, ("first",))
    programs.close()
    for name in STAGES:
        with pytest.raises(BackendError, match="was closed"):
            programs[name]
    assert backend.prepared == ["first"]

"""Programs that come and go: loaded when asked for, freed when evicted."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from vkrt.backends.fake import FakeBackend
from vkrt.errors import BackendError, CheckpointError
from vkrt.memory.residency import Residency
from vkrt.stage import Program, Stage

NAMES = ("first", "second", "third")


class Weights:
    """Stand for the module of a stage."""


class Disk(Mapping[str, Stage]):
    """Make a stage anew each time it is asked for, as one that reads files does."""

    def __init__(self) -> None:
        self.read: list[str] = []
        self.alive: weakref.WeakSet[Weights] = weakref.WeakSet()

    def __getitem__(self, name: str) -> Stage:
        if name == "absent":
            raise CheckpointError("give the file of absent")
        if name not in NAMES:
            raise KeyError(name)
        self.read.append(name)
        module = Weights()
        self.alive.add(module)
        return Stage(name, module, (), ())

    def __contains__(self, name: object) -> bool:
        return name in NAMES

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)

    def __len__(self) -> int:
        return len(NAMES)


class Keeper(FakeBackend):
    """Keep the module of a stage in its program, and count what is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.budgets: list[int | None] = []
        self.closed = 0

    def prepare(self, stage: Stage, budget: int | None = None) -> Program:
        self.budgets.append(budget)
        module = stage.module
        return lambda: (module,)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def backend() -> Keeper:
    return Keeper()


@pytest.fixture
def residency(disk: Disk, backend: Keeper) -> Residency:
    return Residency(disk, lambda name: backend)


def alive(disk: Disk) -> int:
    gc.collect()
    return len(disk.alive)


def test_a_stage_is_read_once_per_stay(residency: Residency, disk: Disk) -> None:
    assert residency.program("first") is residency.program("first")
    residency.evict("first", "second")
    residency.program("first")
    assert disk.read == ["first", "first"]
    assert list(residency.loaded) == ["first"]


def test_what_is_evicted_is_freed(residency: Residency, disk: Disk) -> None:
    for name in NAMES:
        residency.program(name)
    assert alive(disk) == 3
    residency.keep_only({"second", "elsewhere"})
    assert list(residency.loaded) == ["second"]
    assert alive(disk) == 1


def test_a_program_that_holds_something_is_closed(disk: Disk, backend: Keeper) -> None:
    closed = []

    class Session:
        def __call__(self) -> tuple[Any, ...]:
            return ()

        def close(self) -> None:
            closed.append(self)

    session = Session()
    backend.prepare = lambda stage, budget=None: session  # type: ignore[method-assign]
    residency = Residency(disk, lambda name: backend)
    residency.program("first")
    residency.evict("first")
    assert closed == [session]


def test_only_what_streams_is_told_of_a_budget(residency: Residency, backend: Keeper) -> None:
    residency.program("first")
    residency.stream({"second": 100})
    residency.program("second")
    assert backend.budgets == [None, 100]
    assert list(residency.loaded) == ["first", "second"]


def test_another_budget_loads_again(residency: Residency, backend: Keeper) -> None:
    residency.stream({"first": 100, "second": 7})
    residency.program("first")
    residency.program("second")
    residency.stream({"first": 200, "second": 7})
    assert list(residency.loaded) == ["second"]
    residency.program("first")
    residency.stream({})
    assert not residency.loaded
    assert backend.budgets == [100, 7, 200]


def test_what_is_missing_is_said_before_anything_runs(residency: Residency, disk: Disk) -> None:
    residency.require(NAMES)
    with pytest.raises(CheckpointError, match="give the file of absent"):
        residency.require(["first", "absent"])
    with pytest.raises(CheckpointError, match="loaded without unheard_of"):
        residency.program("unheard_of")
    assert "first" in residency
    assert "absent" not in residency
    assert not disk.read


def test_nothing_is_loaded_once_closed(disk: Disk) -> None:
    one, other = Keeper(), Keeper()
    residency = Residency(disk, lambda name: one if name == "third" else other)
    for name in NAMES:
        residency.program(name)
    residency.close()
    assert (one.closed, other.closed) == (1, 1)
    assert alive(disk) == 0
    with pytest.raises(BackendError, match="was closed"):
        residency.program("first")

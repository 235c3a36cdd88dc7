"""Prefetching: the same items in the same order, never too far ahead, and an end to it."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vkrt.errors import VideoError
from vkrt.media import prefetch as module
from vkrt.media.prefetch import prefetch

SOON = 10.0  # seconds that a test waits at most


def wait_for(holds: Callable[[], bool]) -> bool:
    """Return whether something comes true soon."""
    end = time.monotonic() + SOON
    while not holds() and time.monotonic() < end:
        time.sleep(0.001)
    return holds()


def workers() -> int:
    return sum(thread.name == "vkrt-prefetch" for thread in threading.enumerate())


@given(st.lists(st.integers()), st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_order_is_kept(items: list[int], depth: int) -> None:
    assert list(prefetch(items, depth)) == items


@given(st.lists(st.integers()), st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_an_error_comes_after_the_items_before_it(items: list[int], depth: int) -> None:
    def failing() -> Iterator[int]:
        yield from items
        raise KeyError("here")

    got = []
    ahead = prefetch(failing(), depth)
    with pytest.raises(KeyError, match="here"):
        got.extend(iter(lambda: next(ahead), object()))
    assert got == items
    assert list(ahead) == []


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_no_more_than_depth_ahead(depth: int) -> None:
    made: list[int] = []

    def noted() -> Iterator[int]:
        for index in range(20):
            made.append(index)
            yield index

    with prefetch(noted(), depth) as ahead:
        for taken in range(10):
            assert wait_for(lambda want=taken: len(made) == want + depth)  # type: ignore[misc]
            time.sleep(0.005)
            assert len(made) == taken + depth
            assert next(ahead) == taken


def test_work_goes_on_at_the_same_time() -> None:
    begun = threading.Event()

    def slow() -> Iterator[int]:
        yield 0
        begun.set()
        yield 1

    with prefetch(slow()) as ahead:
        assert next(ahead) == 0
        assert begun.wait(SOON)


def test_closing_stops_the_thread() -> None:
    made: list[int] = []
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                made.append(len(made))
                yield made[-1]
        finally:
            closed.set()

    before = workers()
    with prefetch(endless(), 3) as ahead:
        assert next(ahead) == 0
    assert workers() == before and closed.is_set() and len(made) <= 4
    assert list(ahead) == []
    ahead.close()


def test_a_forgotten_one_stops() -> None:
    def endless() -> Iterator[int]:
        while True:
            yield 0

    before = workers()
    ahead = prefetch(endless())
    next(ahead)
    del ahead
    gc.collect()
    assert wait_for(lambda: workers() == before)


def test_closing_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    release = threading.Event()

    def hanging() -> Iterator[int]:
        release.wait(SOON)
        yield 0

    before = workers()
    ahead = prefetch(hanging())
    ahead.close()
    assert workers() == before + 1
    release.set()
    assert wait_for(lambda: workers() == before)


def test_closing_wakes_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    release = threading.Event()
    got: list[int] = []

    def hanging() -> Iterator[int]:
        release.wait(SOON)
        yield 0

    ahead = prefetch(hanging())
    taker = threading.Thread(target=lambda: got.extend(ahead))
    taker.start()
    ahead.close()
    taker.join(SOON)
    assert not taker.is_alive() and got == []
    release.set()


def test_what_can_not_be_iterated() -> None:
    with pytest.raises(TypeError, match="not iterable"):
        next(prefetch(5))  # type: ignore[arg-type]


@pytest.mark.parametrize("depth", [0, -1])
def test_wrong_depth(depth: int) -> None:
    with pytest.raises(VideoError, match="give 1 or more"):
        prefetch([], depth)

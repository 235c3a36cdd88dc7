"""Prefetching: a thread that makes the next items while the last one is worked on."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator
from queue import SimpleQueue
from types import TracebackType
from typing import Generic, TypeVar

from vkrt.errors import VideoError
from vkrt.forks import Home

__all__ = ["Prefetch", "prefetch"]

T = TypeVar("T")

# How long closing waits for an item that is still being made, as by a camera that hangs.
PATIENCE = 5.0


class Failure:
    """Hold what stopped the making: an error, or None at the end."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Belt(Generic[T]):
    """Carry items from the thread that makes them to the one that takes them.

    Attributes:
        slots: one for each item that may be made now.
        items: made and not yet taken, a Failure last.
        stopped: set when no more items are wanted.
    """

    def __init__(self, depth: int) -> None:
        self.slots = threading.Semaphore(depth)
        self.items: SimpleQueue[tuple[T] | Failure] = SimpleQueue()
        self.stopped = threading.Event()
        self.home = Home("opened the clip")

    def fill(self, iterable: Iterable[T]) -> None:
        """Make items until there are no more, one fails, or none is wanted."""
        error: BaseException | None = None
        try:
            iterator = iter(iterable)
            while self.slots.acquire() and not self.stopped.is_set():
                try:
                    item = next(iterator)
                except StopIteration:
                    break
                self.items.put((item,))
                del item  # this thread holds nothing while it waits
        except BaseException as caught:
            error = caught
        self.items.put(Failure(error))

    def stop(self) -> None:
        """Say that no more items are wanted, unless the thread was left behind by a fork."""
        if not self.home.is_here:
            return
        self.stopped.set()
        self.slots.release()


class Prefetch(Iterator[T]):
    """Iterate over what another thread makes, in order: see prefetch."""

    def __init__(self, iterable: Iterable[T], depth: int) -> None:
        if depth < 1:
            raise VideoError(f"a thread can't be {depth} items ahead; give 1 or more")
        self._belt: Belt[T] = Belt(depth)
        # Of the belt alone, so that the thread does not keep this object alive.
        target = self._belt.fill
        self._thread = threading.Thread(
            target=target, args=(iterable,), name="vkrt-prefetch", daemon=True
        )
        self._finalizer = weakref.finalize(self, self._belt.stop)
        self._done = False
        self._thread.start()

    def __next__(self) -> T:
        if self._done:
            raise StopIteration
        self._belt.home.check()
        item = self._belt.items.get()
        if isinstance(item, Failure):
            self._done = True
            if item.error is not None:
                raise item.error
            raise StopIteration
        self._belt.slots.release()
        return item[0]

    def close(self) -> None:
        """Stop the thread and drop what it made; doing it twice is fine.

        An item that is just being made is waited for, but not beyond a few seconds.
        """
        self._done = True
        if not self._belt.home.is_here:
            return
        self._finalizer()
        if self._thread is not threading.current_thread():
            self._thread.join(PATIENCE)
        while not self._belt.items.empty():
            self._belt.items.get()
        self._belt.items.put(Failure(None))  # for a taker that waits in another thread

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def prefetch(iterable: Iterable[T], depth: int = 2) -> Prefetch[T]:
    """Return an iterator over the same items, made by a thread at most `depth` items ahead.

    An error comes after the items that were made before it. Close it when it is not read to its
    end, as by `with`; that does not close what it reads from.

    Raises:
        VideoError: depth is below 1.
    """
    return Prefetch(iterable, depth)

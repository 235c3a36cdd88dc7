"""A least-recently-used cache that is bounded in bytes, not in entries."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

from vkrt.forks import HomeLock

__all__ = ["ByteCache"]

Value = TypeVar("Value")


class ByteCache(Generic[Value]):
    """Keep values while their stated sizes add up to at most `capacity` bytes.

    A value larger than the capacity is not kept; capacity 0 keeps nothing. Safe to use from
    several threads.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.bytes = 0
        self._values: OrderedDict[str, tuple[Value, int]] = OrderedDict()
        self._lock = HomeLock()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> Value | None:
        """Return the value of a key and mark it as just used, or None."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: str, value: Value, size: int) -> None:
        """Keep a value of `size` bytes, dropping the least recently used ones for it."""
        with self._lock:
            self._drop(key)
            if size > self.capacity:
                return
            while self.bytes + size > self.capacity:
                self._drop(next(iter(self._values)))
            self._values[key] = (value, size)
            self.bytes += size

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._values.clear()
            self.bytes = 0

    def _drop(self, key: str) -> None:
        _, size = self._values.pop(key, (None, 0))
        self.bytes -= size

"""The embedding cache never holds more bytes than it may."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vkrt.memory.cache import ByteCache


def test_the_least_recently_used_goes_first() -> None:
    cache: ByteCache[str] = ByteCache(10)
    cache.put("a", "A", 4)
    cache.put("b", "B", 4)
    assert cache.get("a") == "A"
    cache.put("c", "C", 4)
    assert cache.get("b") is None
    assert (cache.get("a"), cache.get("c")) == ("A", "C")
    cache.clear()
    assert (len(cache), cache.bytes) == (0, 0)


def test_what_is_too_large_is_not_kept_and_drops_its_old_self() -> None:
    cache: ByteCache[str] = ByteCache(10)
    cache.put("a", "A", 4)
    cache.put("a", "AA", 11)
    assert cache.get("a") is None
    assert cache.bytes == 0


@given(
    capacity=st.integers(0, 50),
    puts=st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 30)), max_size=40),
)
def test_the_bound_holds(capacity: int, puts: list[tuple[str, int]]) -> None:
    cache: ByteCache[int] = ByteCache(capacity)
    for key, size in puts:
        cache.put(key, size, size)
        assert cache.bytes <= capacity
        assert cache.get(key) == (size if size <= capacity else None)
    assert cache.bytes == sum(v for k in "abcdef" if (v := cache.get(k)) is not None)

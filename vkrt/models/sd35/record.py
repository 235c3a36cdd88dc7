"""The shape of a model as a record that JSON can hold, and back: imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any, TypeVar, get_type_hints

__all__ = ["from_record", "to_record"]

C = TypeVar("C")


def to_record(config: Any) -> dict[str, Any]:
    """Return a config of vkrt.models.sd35.config as a record."""
    return asdict(config)


def from_record(kind: type[C], record: Any) -> C:
    """Return the config that a record holds; what it lacks is as the kind has it.

    Args:
        kind: such as Sd35Config.
        record: as to_record gives it, with lists for tuples, as JSON has them.

    Raises:
        TypeError, ValueError: it has an unknown name or a value that can't be, or lacks one.
    """
    if not isinstance(record, Mapping):
        raise TypeError(f"{record!r:.40} where a {kind.__name__} belongs")
    hints = get_type_hints(kind)
    unknown = sorted(record.keys() - hints.keys())
    if unknown:
        raise ValueError(f"a {kind.__name__} has no {unknown[0]!r:.40}")
    return kind(**{name: value_of(hints[name], value) for name, value in record.items()})


def value_of(hint: Any, value: Any) -> Any:
    """Return a value of a record as a field of this type holds it."""
    if is_dataclass(hint):
        return from_record(hint, value)  # type: ignore[arg-type]
    if hint == tuple[int, ...]:
        return tuple(value_of(int, item) for item in value)
    if hint is str and isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float) if hint is float else hint):
        raise TypeError(f"{value!r:.40} where a {hint.__name__} belongs")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{value!r:.40} where a size belongs")
    return hint(value)

"""Checks of arguments: each returns a value in its plain form, or refuses it in one line.

A message names the argument, says what it may be and shows what was given, shortened. None of the
checks takes None: an argument that may be None is checked where it is not.
"""

from __future__ import annotations

import operator
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

from vkrt.errors import VkrtError

__all__ = [
    "MAX_BYTES",
    "MAX_THREADS",
    "choice",
    "flag",
    "function",
    "instance",
    "is_number",
    "is_whole",
    "number",
    "path",
    "refuse_unknown",
    "shown",
    "text",
    "whole",
]

# Threads of one model: more than any machine has cores, few enough for any system to start.
MAX_THREADS = 1024
# Bytes of a cache or a limit: one pebibyte.
MAX_BYTES = 2**50
# Characters of a text, such as a prompt.
MAX_TEXT = 100_000
# Characters of a value that a message shows.
SHOWN = 60

Kind = type[VkrtError]


def refuse_unknown(
    call: str,
    given: Iterable[str],
    known: Iterable[str],
    kind: Kind,
    others: Mapping[str, str] | None = None,
) -> None:
    """Refuse names of arguments that a call does not have, with the one that may be meant.

    Args:
        call: what errors call the call.
        given: the names.
        known: those that there are.
        kind: of the error.
        others: what the names of another package are called here.

    Raises:
        VkrtError: of that kind, naming the first of them.
    """
    every = list(known)
    for name in given:
        if name in every:
            continue
        meant = (others or {}).get(name) or next(iter(get_close_matches(name, every, n=1)), None)
        hint = f"; give {meant}" if meant else f"; it has {', '.join(every)}"
        raise kind(f"{call} has no argument {shown(name)}{hint}")


Thing = TypeVar("Thing")


def shown(value: Any) -> str:
    """Return a value as a message shows it: short, and whatever it is, without an error."""
    short = reprlib.Repr()
    short.maxstring = short.maxlong = short.maxother = SHOWN
    try:
        told = short.repr(value)
    except Exception:
        told = ""
    # An object without a text of its own shows its address, which helps nobody.
    plain = told and not told.startswith("<")
    return told[: SHOWN + 20] if plain else f"a value of type {type(value).__name__}"


def is_whole(value: Any) -> bool:
    """Tell whether a value is a whole number of any kind, also numpy's; truth values are none."""
    return not is_truth(value) and not is_array(value) and hasattr(type(value), "__index__")


def is_number(value: Any) -> bool:
    """Tell whether a value is a real number of any kind, also numpy's; truth values are none."""
    return (
        not is_truth(value)
        and not is_array(value)
        and (hasattr(type(value), "__float__") or hasattr(type(value), "__index__"))
    )


def is_truth(value: Any) -> bool:
    """Tell whether a value is True or False, also numpy's."""
    return isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")


def is_array(value: Any) -> bool:
    """Tell whether a value is an array or a tensor with dimensions."""
    return getattr(value, "ndim", 0) != 0


def whole(
    name: str, value: Any, low: int | None = None, high: int | None = None, *, kind: Kind
) -> int:
    """Return a whole number within bounds, both included, as int.

    Raises:
        kind: it is something else.
    """
    try:
        found = operator.index(value) if is_whole(value) else None
    except Exception:  # of a foreign type, such as a tensor of fractions
        found = None
    if found is None or not within(found, low, high):
        raise kind(f"{name} must be a whole number{span(low, high)}, not {shown(value)}")
    return found


def number(
    name: str,
    value: Any,
    low: float | None = None,
    high: float | None = None,
    *,
    kind: Kind,
) -> float:
    """Return a finite number within bounds, both included, as float.

    Raises:
        kind: it is something else.
    """
    try:
        found = float(value) if is_number(value) else None
    except Exception:  # beyond what a float holds, or of a foreign type
        found = None
    if found is None or not isfinite(found) or not within(found, low, high):
        raise kind(f"{name} must be a number{span(low, high)}, not {shown(value)}")
    return found


def within(value: float, low: float | None, high: float | None) -> bool:
    """Tell whether a number is within bounds, both included; None is no bound."""
    return (low is None or value >= low) and (high is None or value <= high)


def span(low: float | None, high: float | None) -> str:
    """Return bounds in words."""
    if low is None:
        return "" if high is None else f" of at most {high}"
    return f" of at least {low}" if high is None else f" from {low} to {high}"


def choice(name: str, value: Any, choices: Sequence[str], *, kind: Kind) -> str:
    """Return a text that is one of the choices.

    Raises:
        kind: it is something else.
    """
    if not isinstance(value, str) or value not in choices:
        quoted = [f'"{each}"' for each in choices]
        names = " or ".join(quoted) if len(quoted) < 3 else f"one of {', '.join(quoted)}"
        raise kind(f"{name} must be {names}, not {shown(value)}")
    return value


def flag(name: str, value: Any, *, kind: Kind) -> bool:
    """Return a truth value, also numpy's; 0 and 1 are such too.

    Raises:
        kind: it is something else.
    """
    if is_truth(value) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    raise kind(f"{name} must be True or False, not {shown(value)}")


def text(name: str, value: Any, *, kind: Kind, longest: int = MAX_TEXT) -> str:
    """Return a text of at most so many characters, all of them whole.

    Raises:
        kind: it is something else.
    """
    if not isinstance(value, str):
        raise kind(f"{name} must be text, not {shown(value)}")
    if len(value) > longest:
        raise kind(f"{name} has {len(value)} characters; {longest} are the most")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise kind(f"{name} has half a character in place {error.start}; leave it out") from None
    return value


def path(name: str, value: Any, *, kind: Kind) -> Path:
    """Return a path that the system can look up; nothing has to be there.

    Raises:
        kind: it is no path, empty, too long, or has a character that no path may have.
    """
    if not isinstance(value, str | os.PathLike):
        raise kind(f"{name} must be a path, not {shown(value)}")
    try:
        place = os.fspath(value)
        if not isinstance(place, str) or not place:
            raise ValueError("it is empty" if isinstance(place, str) else "it is made of bytes")
        if "\0" in place:
            raise ValueError("it holds a NUL character")
        Path(place).exists()
    except (OSError, TypeError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise kind(f"{name} can't be the path {shown(value)}: {why}") from None
    return Path(place)


def function(name: str, value: Any, *, kind: Kind) -> Callable[..., Any]:
    """Return what can be called.

    Raises:
        kind: it is something else.
    """
    if not callable(value):
        raise kind(f"{name} must be a function, not {shown(value)}")
    found: Callable[..., Any] = value
    return found


def instance(name: str, value: Any, wanted: type[Thing], *, kind: Kind) -> Thing:
    """Return an object of a class of vkrt.

    Raises:
        kind: it is something else.
    """
    if not isinstance(value, wanted):
        raise kind(f"{name} must be a {wanted.__name__} of vkrt, not {shown(value)}")
    return value

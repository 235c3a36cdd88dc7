"""What the tests of arguments share: values that fit nowhere, and how an answer to them may be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from vkrt.errors import LONGEST, VkrtError

__all__ = ["ABSURD", "TEXTS", "ask"]


class Nameless:
    """Be of no use, and not even tell what it is."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __repr__(self) -> str:
        raise RuntimeError("no\nname")


ABSURD: dict[str, Any] = {
    "None": None,
    "object": object(),
    "nameless": Nameless(),
    "class": Nameless,
    "function": lambda *_, **__: 1,
    "empty text": "",
    "two lines": "x\ny",
    "escape": "\x1b[31m\x07",
    "half a character": "\udc80",
    "long text": "x" * 200_000,
    "long path": "x/" * 3000 + "y",
    "NUL": "a\0b",
    "bytes": b"",
    "some bytes": b"\xff\xfe",
    "empty list": [],
    "list": [1, "a", None],
    "nested": [[[[[[1]]]]]],
    "dict": {},
    "some dict": {"a": 1},
    "set": {3},
    "NaN": float("nan"),
    "infinity": float("inf"),
    "-infinity": float("-inf"),
    "-1": -1,
    "0": 0,
    "half": 0.5,
    "True": True,
    "2**31": 2**31,
    "2**63": 2**63,
    "10**400": 10**400,
    "-10**5000": -(10**5000),
    "1e308": 1e308,
    "complex": 1j,
    "numpy NaN": np.float32("nan"),
    "numpy -1": np.int64(-1),
    "numpy 0.5": np.float16(0.5),
    "numpy True": np.True_,
    "array": np.array([1, 2]),
    "no array": np.zeros((0, 3)),
    "array of objects": np.array([object(), None]),
    "array of texts": np.array(["a", "b\n"]),
    "range": range(3),
}

# What a shell may hand over.
TEXTS = (
    *("", " ", "x\ny", "\x1b[31m", "\udc80", "é日本", "x" * 5000, "a/" * 3000, "a\0b", "..", "/"),
    *("nan", "inf", "-1", "0", "1e308", "9" * 400, "-0.5", "1,2", "9" * 40 + ",1,2,3", "true"),
    *("1,2,3,4", "nan,nan", "@", ":", "1,1@0:1", "-", "--", "64x64", "99999x99999", "@9:9", "8EiB"),
)


def ask(call: Callable[[], Any]) -> str | None:
    """Call, and return what was refused, or None where there was an answer.

    Raises:
        AssertionError: something else than a vkrt error of one line came of it.
    """
    try:
        use(call())
    except VkrtError as error:
        line = str(error)
        assert line and "\n" not in line and "\x1b" not in line and len(line) <= LONGEST, repr(line)
        line.encode()
        return line
    return None


def use(answer: Any) -> None:
    """Take the first few of what is given one by one, and close what can be closed."""
    if isinstance(answer, Iterator):
        for _ in islice(answer, 3):
            pass
    # What was made for one call is closed; a model that other calls share is not returned.
    if hasattr(answer, "close"):
        answer.close()

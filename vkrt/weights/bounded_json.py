"""Parse JSON from a file of unknown origin, without more memory than the limits allow."""

from __future__ import annotations

import json
from typing import Any

from vkrt.weights.safety_limits import MAX_JSON_DEPTH, MAX_JSON_VALUES

__all__ = ["check_json", "parse_json"]

NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def parse_json(text: bytes | str, most: int = MAX_JSON_VALUES) -> Any:
    """Return what a JSON text holds.

    Args:
        text: of a size that was checked.
        most: how many values it may have, numbers in lists included.

    Raises:
        ValueError: it is no JSON, or it is beyond the limits; nothing was built then.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    check_json(data, most)
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def check_json(data: bytes, most: int = MAX_JSON_VALUES) -> None:
    """Check how many values a JSON text has and how deep they lie; they take memory, it does not.

    Raises:
        ValueError: too many, or too deep.
    """
    # Without escapes every quote begins or ends a string. Searching strings one by one would take
    # more memory than the text.
    text = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    if text.count(b'"') > 2 * most:
        raise ValueError(f"it has more than {most:,} strings")
    structure = b"".join(text.split(b'"')[::2])
    # Every value but the first is behind a bracket or a comma.
    if sum(structure.count(mark) for mark in (b"[", b"{", b",")) >= most:
        raise ValueError(f"it has more than {most:,} values")
    depth = 0
    for bracket in structure.translate(None, NOT_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_JSON_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_JSON_DEPTH} levels")

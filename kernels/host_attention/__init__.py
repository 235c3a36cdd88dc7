"""Attention on host arrays, without torch: C++ in parallel, or numpy where that is missing.

Both leave out what a table of all logits would cost in memory: the C++ holds those of a block of
keys, numpy those of a block of queries.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

__all__ = ["IS_NATIVE", "MASKED", "attend", "instructions", "stand_in"]

SWITCH = "VKRT_NO_NATIVE"
MASKED = -1e8  # a bias of at most this leaves a key out
PAIRS_AT_ONCE = 2**22  # logits that numpy holds at a time: 16 MB


def attend(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    bias: np.ndarray | None = None,
    threads: int | None = None,
    precision: str = "fp32",
) -> np.ndarray:
    """Return softmax(query key' / sqrt(D) + bias) value.

    A key whose bias is MASKED or less is left out: neither it nor its value is read, and a query
    without any other key gets 0. All arrays are float32, contiguous and not empty. With heads, of
    which each attends by itself, arrays have an axis H in front of the last, and of their strides
    only the last has to be that of one number.

    Args:
        query: (N, Q, D) or (N, Q, H, D).
        key: (N, K, D) or (N, K, H, D).
        value: (N, K, V) or (N, K, H, V).
        bias: (N, K), added to the logits of every query; None adds nothing.
        threads: CPU threads; None is one per core, up to 8. The result does not depend on it.
        precision: "bf16" lets query, key, value and the softmax be rounded to bf16 where products
            are faster so (x86 with AVX512_BF16), with sums in float32. "fp32" rounds nothing more.

    Returns:
        (N, Q, V) or (N, Q, H, V) float32.

    Raises:
        TypeError: an array is not float32.
        ValueError: an array has gaps where it may not, is empty, or does not fit the others; or
            there is no such precision.
    """
    return _attention(query, key, value, bias, threads or 0, precision)


def stand_in(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    bias: np.ndarray | None = None,
    threads: int = 0,
    precision: str = "fp32",
) -> np.ndarray:
    """Compute attend in numpy, some queries at a time; threads and precision change nothing."""
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision must be fp32 or bf16, not {precision}")
    if query.ndim == key.ndim == value.ndim == 4:
        return beside(query, key, value, bias)
    check(query, key, value, bias)
    result = np.zeros((*query.shape[:2], value.shape[2]), np.float32)
    scale = np.float32(query.shape[2] ** -0.5)
    for index, out in enumerate(result):
        keys, values, added = seen(key[index], value[index], None if bias is None else bias[index])
        if not len(keys):
            continue
        rows = max(1, PAIRS_AT_ONCE // len(keys))
        for begin in range(0, len(out), rows):
            some = slice(begin, begin + rows)
            weights = query[index, some] * scale @ keys.T
            weights += added
            weights -= weights.max(axis=1, keepdims=True)
            np.exp(weights, out=weights)
            out[some] = weights @ values / weights.sum(axis=1, keepdims=True)
    return result


def beside(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, bias: np.ndarray | None
) -> np.ndarray:
    """Compute attend for arrays with heads."""
    for name, array in (("query", query), ("key", key), ("value", value)):
        if array.shape[-1] > 1 and array.strides[-1] != array.itemsize:
            raise ValueError(
                f"{name} must have rows without gaps; pass numpy.ascontiguousarray of it"
            )
    if not query.shape[2] == key.shape[2] == value.shape[2]:
        raise ValueError("query, key and value must be of equally many objects")
    each = []
    for head in range(query.shape[2]):
        q, k, v = (np.ascontiguousarray(array[:, :, head]) for array in (query, key, value))
        each.append(stand_in(q, k, v, bias))
    return np.stack(each, axis=2)


def seen(
    keys: np.ndarray, values: np.ndarray, bias: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | np.float32]:
    """Return keys, values and bias of one object without the masked ones."""
    if bias is None:
        return keys, values, np.float32(0)
    chosen = ~(bias <= MASKED)  # NaN is not masked, so that it shows
    return keys[chosen], values[chosen], bias[chosen]


def check(query: np.ndarray, key: np.ndarray, value: np.ndarray, bias: np.ndarray | None) -> None:
    """Raise what attend does on bad arrays."""
    arrays = {"query": (query, 3), "key": (key, 3), "value": (value, 3)}
    if bias is not None:
        arrays["bias"] = bias, 2
    for name, (array, dimensions) in arrays.items():
        check_layout(array, name, dimensions)
    if not len(query) == len(key) == len(value):
        raise ValueError("query, key and value must be of equally many objects")
    if query.shape[2] != key.shape[2]:
        depths = f"{query.shape[2]} and {key.shape[2]}"
        raise ValueError(f"query and key must be equally deep, not {depths}")
    if key.shape[1] != value.shape[1]:
        counts = f"{key.shape[1]} and {value.shape[1]}"
        raise ValueError(f"key and value must be equally many, not {counts}")
    if bias is not None and bias.shape != key.shape[:2]:
        raise ValueError(f"bias must have shape {key.shape[:2]}, a number for each key")


def check_layout(array: np.ndarray, name: str, dimensions: int) -> None:
    """Raise unless an array is float32 of so many dimensions, contiguous and not empty."""
    if array.dtype != np.float32:
        raise TypeError(f"{name} must be float32, not {array.dtype}")
    if array.ndim != dimensions:
        raise ValueError(f"{name} must have {dimensions} dimensions, not {array.ndim}")
    if not (array.flags.c_contiguous and array.flags.aligned):
        raise ValueError(f"{name} must be contiguous; pass numpy.ascontiguousarray of it")
    if not array.size:
        raise ValueError(f"{name} has a size of 0, which is not between 1 and 2147483647")


def find() -> Callable[..., np.ndarray]:
    """Return the C++ attention, or the stand-in where that is turned off or missing."""
    if os.environ.get(SWITCH, "") not in ("", "0"):
        return stand_in
    try:
        from vkrt._native import attention
    except ImportError:
        return stand_in
    return attention


def instructions(precision: str = "fp32") -> str:
    """Return which of a CPU's instructions compute attention here, or "numpy"."""
    if not IS_NATIVE:
        return "numpy"
    from vkrt._native import attention_instructions

    return str(attention_instructions(precision)[0])


_attention = find()
IS_NATIVE = _attention is not stand_in

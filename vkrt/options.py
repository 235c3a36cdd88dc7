"""How a model is to run: backend, device, precision, threads, cache folder and limits."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from vkrt.errors import BackendError

__all__ = [
    "BACKENDS",
    "PRECISIONS",
    "Options",
    "cache_folder",
    "default_backend",
    "parse_bytes",
    "usable_cores",
]

BACKENDS = ("auto", "eager", "onnx", "openvino")
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")
EMBEDDING_CACHE_BYTES = 512 * 1024**2
# Microseconds of CPU time that this container may take in each period, and the period.
QUOTA = Path("/sys/fs/cgroup/cpu.max")
AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE | re.ASCII)
POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def cache_folder() -> Path:
    """Return where downloads and caches go: $VKRT_CACHE, $XDG_CACHE_HOME/vkrt or ~/.cache/vkrt."""
    own = os.environ.get("VKRT_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared).expanduser() if shared else Path.home() / ".cache") / "vkrt"


def default_backend() -> str:
    """Return what backend="auto" stands for with a checkpoint: $VKRT_BACKEND, or "auto" itself."""
    return os.environ.get("VKRT_BACKEND") or "auto"


def usable_cores() -> int:
    """Return how many cores this process may use: those it is bound to, within its quota."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = QUOTA.read_text().split()
        limit = -(-int(quota) // int(period))
    except (OSError, ValueError):
        # No such file, or "max" for no limit.
        return bound or 1
    return max(1, min(bound or 1, limit))


def parse_bytes(text: str) -> int:
    """Return the bytes of a text: "8GiB" is 8 * 1024**3, "8GB" 8 * 1000**3, "8G" is "8GiB".

    Raises:
        BackendError: it is no such text, or less than one byte.
    """
    found = AMOUNT.fullmatch(text.strip())
    amount = 0
    if found is not None:
        number, prefix, binary = found.groups()
        decimal = not binary and text.strip().lower().endswith("b")
        scaled = float(number) * (1000 if decimal else 1024) ** POWERS[prefix.lower()]
        amount = int(scaled) if math.isfinite(scaled) else 0
    if amount < 1:
        raise BackendError(f"an amount of memory is such as 8GiB or 512MiB, not {text!r:.40}")
    return amount


@dataclass(frozen=True)
class Options:
    """Say how to run a model.

    Attributes:
        backend: "auto", "eager", "onnx" or "openvino".
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: "auto" (fp32 on a CPU, bf16 on a GPU that has it), "fp32", "bf16", "fp16" or
            "int8", which ONNX Runtime alone has.
        threads: CPU threads for the model and the pre- and post-processing; None leaves the
            machine's default.
        embedding_cache_bytes: bound of the embedding cache; 0 turns it off.
        cache: folder of downloads and of exported bundles.
        memory_limit: bytes that a model's weights and work may take on the device; None is what
            the device has.

    Raises:
        BackendError: a value is not one of the above.
    """

    backend: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    embedding_cache_bytes: int = EMBEDDING_CACHE_BYTES
    cache: Path = field(default_factory=cache_folder)
    memory_limit: int | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("backend", self.backend, BACKENDS),
            ("precision", self.precision, PRECISIONS),
        ):
            if value not in known:
                raise BackendError(f"{name} must be one of {', '.join(known)}, not {value!r}")
        if self.threads is not None and self.threads < 1:
            raise BackendError(f"threads must be at least 1, not {self.threads}")
        if self.embedding_cache_bytes < 0:
            raise BackendError("embedding_cache_bytes must not be negative")
        if self.memory_limit is not None and self.memory_limit < 1:
            raise BackendError(f"memory_limit must be at least 1 byte, not {self.memory_limit}")

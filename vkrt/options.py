"""How a model is to run: backend, device, precision, threads, cache folder and limits."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from vkrt.errors import BackendError

__all__ = ["BACKENDS", "PRECISIONS", "Options", "cache_folder"]

BACKENDS = ("auto", "eager")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
EMBEDDING_CACHE_BYTES = 512 * 1024**2


def cache_folder() -> Path:
    """Return where downloads and caches go: $VKRT_CACHE, $XDG_CACHE_HOME/vkrt or ~/.cache/vkrt."""
    own = os.environ.get("VKRT_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared).expanduser() if shared else Path.home() / ".cache") / "vkrt"


@dataclass(frozen=True)
class Options:
    """Say how to run a model.

    Attributes:
        backend: "auto" or "eager".
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: "auto" (fp32 on a CPU, bf16 on a GPU that has it), "fp32", "bf16" or "fp16".
        threads: CPU threads for the model and the pre- and post-processing; None leaves the
            machine's default.
        embedding_cache_bytes: bound of the embedding cache; 0 turns it off.
        cache: folder of downloads.

    Raises:
        BackendError: a value is not one of the above.
    """

    backend: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    embedding_cache_bytes: int = EMBEDDING_CACHE_BYTES
    cache: Path = field(default_factory=cache_folder)

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

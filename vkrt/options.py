"""How a model is to run: backend, device, precision, threads, cache folder and limits."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vkrt.arguments import MAX_BYTES, MAX_THREADS, choice, function, path, shown, text, whole
from vkrt.errors import BackendError, OutputError

__all__ = [
    "BACKENDS",
    "EXPORTS",
    "PRECISIONS",
    "Options",
    "cache_folder",
    "check_export_allowed",
    "default_backend",
    "default_export",
    "exports_forbidden",
    "forbid_exports",
    "parse_bytes",
    "usable_cores",
    "usable_memory",
]

BACKENDS = ("auto", "eager", "onnx", "openvino")
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")
EXPORTS = ("auto", "behind", "first", "never")
FORBID = "forbid"
EMBEDDING_CACHE_BYTES = 512 * 1024**2
# Microseconds of CPU time that this container may take in each period, and the period.
QUOTA = Path("/sys/fs/cgroup/cpu.max")
MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")
AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE | re.ASCII)
DEVICE = re.compile(r"[a-z]{1,16}(:\d{1,3})?", re.ASCII)
# The whole numbers of Options, and what they may be.
BOUNDS = (
    ("threads", 1, MAX_THREADS),
    ("embedding_cache_bytes", 0, MAX_BYTES),
    ("memory_limit", 1, MAX_BYTES),
)
POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def cache_folder() -> Path:
    """Return where downloads and caches go: $VKRT_CACHE, $XDG_CACHE_HOME/vkrt or ~/.cache/vkrt.

    Raises:
        OutputError: no folder can be there; whether it can be written is not tried.
    """
    own = os.environ.get("VKRT_CACHE", "").strip()
    shared = os.environ.get("XDG_CACHE_HOME", "").strip()
    try:
        if own:
            folder = Path(own).expanduser()
        elif shared:
            folder = Path(shared).expanduser() / "vkrt"
        else:
            folder = Path.home() / ".cache" / "vkrt"
        there = next((each for each in (folder, *folder.parents) if each.exists()), None)
        reason = f"{there} is no folder" if there is not None and not there.is_dir() else ""
    except (OSError, RuntimeError) as error:
        folder = Path(own or shared or "~")
        reason = getattr(error, "strerror", None) or "there is no such home folder"
    if reason:
        raise OutputError(
            f"the cache can't be at {folder!s:.200} ({reason}); set VKRT_CACHE to a folder"
        )
    return folder


def default_backend() -> str:
    """Return what backend="auto" stands for with a checkpoint: $VKRT_BACKEND, or "auto" itself."""
    return os.environ.get("VKRT_BACKEND") or "auto"


def default_export() -> str:
    """Return what export="auto" stands for: $VKRT_EXPORT, or "auto" itself.

    Raises:
        BackendError: the variable holds something else.
    """
    said = os.environ.get("VKRT_EXPORT") or "auto"
    if said not in (*EXPORTS, FORBID):
        known = ", ".join((*EXPORTS, FORBID))
        raise BackendError(f"VKRT_EXPORT must be one of {known}, not {said!r:.40}")
    return "never" if said == FORBID else said


_forbidden = False


def forbid_exports() -> None:
    """Let this process export nothing from now on; VKRT_EXPORT=forbid does the same.

    Bundles that are there are still used. A checkpoint runs with PyTorch, and a request that needs
    an export (backend="onnx", precision="int8", export_model) raises BackendError. An export that
    runs in the background is stopped.
    """
    global _forbidden
    _forbidden = True


def exports_forbidden() -> bool:
    """Tell whether this process must not export, by forbid_exports or by VKRT_EXPORT=forbid."""
    return _forbidden or os.environ.get("VKRT_EXPORT") == FORBID


def check_export_allowed(what: object) -> None:
    """Refuse an export where exports are forbidden.

    Raises:
        BackendError: they are.
    """
    if exports_forbidden():
        how = "vkrt.forbid_exports()" if _forbidden else f"VKRT_EXPORT={FORBID}"
        raise BackendError(
            f"{what} would have to be exported, which {how} forbids in this process: give a bundle "
            'that `vkrt export` wrote, or take backend="eager"'
        )


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


def usable_memory() -> int | None:
    """Return the memory that this process may use: the machine's, or its container's limit."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
    try:
        limit = MEMORY_LIMIT.read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def parse_bytes(amount_text: str) -> int:
    """Return the bytes of a text: "8GiB" is 8 * 1024**3, "8GB" 8 * 1000**3, "8G" is "8GiB".

    Raises:
        BackendError: it is no such text, or less than one byte.
    """
    told = amount_text.strip() if isinstance(amount_text, str) else ""
    found = AMOUNT.fullmatch(told)
    amount = 0
    if found is not None:
        number, prefix, binary = found.groups()
        decimal = not binary and told.lower().endswith("b")
        scaled = float(number) * (1000 if decimal else 1024) ** POWERS[prefix.lower()]
        amount = int(scaled) if math.isfinite(scaled) else 0
    if amount < 1:
        raise BackendError(
            f"an amount of memory is such as 8GiB or 512MiB, not {shown(amount_text)}"
        )
    return amount


@dataclass(frozen=True)
class Options:
    """Say how to run a model.

    Attributes:
        backend: "auto", "eager", "onnx" or "openvino".
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: "auto" (fp32 on a CPU, bf16 on a GPU that has it), "fp32", "bf16", "fp16" or
            "int8", which ONNX Runtime alone has.
        threads: CPU threads for the model and the pre- and post-processing, from 1 to 1024; None
            leaves the machine's default.
        embedding_cache_bytes: bound of the embedding cache, up to 2**50; 0 turns it off.
        cache: folder of downloads and of exported bundles.
        memory_limit: bytes that a model's weights and work may take on the device, from 1 to
            2**50; None is what the device has.
        export: what happens to a checkpoint that could run as a bundle and has none in the cache.
            "first" exports it before the load returns. "behind" runs it with PyTorch while a
            process of low priority exports it, and goes over to the bundle between two calls.
            "never" takes a bundle that is there, else PyTorch. "auto" is what $VKRT_EXPORT says,
            else "behind" for a model that is still in use a minute after it was loaded: what lives
            for seconds exports nothing.
        report: is called with what is being done and which share of an export, 0 to 1, is done.

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
    export: str = "auto"
    report: Callable[[str, float], None] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        choice("backend", self.backend, BACKENDS, kind=BackendError)
        choice("precision", self.precision, PRECISIONS, kind=BackendError)
        choice("export", self.export, EXPORTS, kind=BackendError)
        check_device(self.device)
        if self.report is not None:
            function("report", self.report, kind=BackendError)
        for name, low, high in BOUNDS:
            value = getattr(self, name)
            if value is not None:
                found = whole(name, value, low, high, kind=BackendError)
                object.__setattr__(self, name, found)
        object.__setattr__(self, "cache", path("cache", self.cache, kind=BackendError))


def check_device(device: str) -> None:
    """Refuse what can't be the name of a device; which there are a backend knows.

    Raises:
        BackendError: it is not of the form of one.
    """
    if DEVICE.fullmatch(text("device", device, kind=BackendError)) is None:
        raise BackendError(f"device must be auto, cpu, cuda or cuda:N, not {shown(device)}")

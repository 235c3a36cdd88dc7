"""What a row says of the checkout and the machine it was measured on; never its name."""

from __future__ import annotations

import platform
import subprocess
import time
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TypedDict

import torch

from vkrt.cli.doctor import cpu_model, usable_cores

__all__ = ["Machine", "commit", "describe_machine", "peak_gflops", "peak_rss_mib", "today"]

ROOT = Path(__file__).resolve().parent.parent


class Machine(TypedDict):
    """Columns of results.csv that are the same for a whole run."""

    date: str
    commit: str
    cpu: str
    cores: int
    threads: int
    torch: str
    transformers: str
    numpy: str
    python: str


def describe_machine() -> Machine:
    """Return the day, the commit, the CPU and the versions that matter."""
    return {
        "date": today(),
        "commit": commit(),
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "numpy": version("numpy"),
        "python": platform.python_version(),
    }


def today() -> str:
    """Return the date in UTC."""
    return datetime.now(timezone.utc).date().isoformat()


def git(*arguments: str) -> str:
    """Return what a git command prints, of this checkout."""
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def commit() -> str:
    """Return the commit, with "-dirty" if anything but results differs from it."""
    try:
        found = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--", ".", ":(exclude)benchmarks/*.csv")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{found}-dirty" if changed else found


def peak_gflops(size: int = 2048, rounds: int = 5) -> float:
    """Return the most fp32 GFLOP/s that a square matrix product reaches here."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    out = torch.mm(left, right)
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        torch.mm(left, right, out=out)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


def peak_rss_mib() -> float | None:
    """Return the most memory this process has held, in MiB; None where the system can't tell.

    getrusage would not do: a new process starts with its parent's peak there.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    peaks = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(peaks[0]) / 1024 if peaks else None

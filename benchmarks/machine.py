"""What a row says of the checkout and the machine it was measured on; never its name."""

from __future__ import annotations

import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypedDict

import torch

from vkrt.cli.doctor import cpu_model
from vkrt.options import usable_cores

__all__ = ["ROOT", "Machine", "commit", "describe_machine", "installed", "today"]

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
    onnxruntime: str | None
    openvino: str | None
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
        "onnxruntime": installed("onnxruntime"),
        "openvino": installed("openvino"),
        "numpy": version("numpy"),
        "python": platform.python_version(),
    }


def installed(package: str) -> str | None:
    """Return the version of a package, None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


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

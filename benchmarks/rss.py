"""How much memory this process holds, as Linux tells it. Imports nothing that would add to it."""

from __future__ import annotations

from pathlib import Path

__all__ = ["forget_peak", "peak_rss_mib", "rss_mib"]


def status(field: str) -> float | None:
    """Return a field of /proc/self/status in MiB; None where the system has none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(found[0]) / 1024 if found else None


def rss_mib() -> float | None:
    """Return the memory that this process holds now, in MiB; None if unknown."""
    return status("VmRSS")


def peak_rss_mib() -> float | None:
    """Return the most memory that this process has held, in MiB; None if unknown.

    getrusage would not do: a new process starts with its parent's peak there.
    """
    return status("VmHWM")


def forget_peak() -> bool:
    """Let peak_rss_mib start anew from what this process holds now; False if the system can't."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True

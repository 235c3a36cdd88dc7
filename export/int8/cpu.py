"""What this machine's CPU does with products of 8-bit integers."""

from __future__ import annotations

import platform
from collections.abc import Collection
from pathlib import Path

__all__ = ["cpu_flags", "needs_reduced_range"]

CPUINFO = Path("/proc/cpuinfo")
X86 = ("x86_64", "amd64", "i386", "i686", "x86")
# Either adds four products of bytes in 32 bits at once.
VNNI = ("avx512_vnni", "avx_vnni")


def cpu_flags() -> frozenset[str]:
    """Return the instruction sets that Linux lists; none elsewhere."""
    try:
        lines = CPUINFO.read_text(errors="replace").splitlines()
    except OSError:
        return frozenset()
    listed = (line.partition(":")[2].split() for line in lines if line.startswith("flags"))
    return frozenset(next(listed, []))


def needs_reduced_range(machine: str | None = None, flags: Collection[str] | None = None) -> bool:
    """Tell whether int8 weights must stay within 7 bits on a CPU, this one if none is given.

    x86 without VNNI adds two products of bytes in 16 bits, which overflow beyond that. Where the
    instruction sets are not known the answer is the safe one.

    Args:
        machine: as platform.machine() has it.
        flags: the instruction sets, as Linux names them.
    """
    kind = (machine or platform.machine()).lower()
    known = cpu_flags() if flags is None else flags
    return kind in X86 and not set(VNNI) & set(known)

"""Run readers on hostile files in a process of its own, under limits of time and memory."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

__all__ = ["MEGABYTE", "outcomes"]

MEGABYTE = 1024**2
# Address space beyond what the imports take; a reader that needs as much has failed.
SPARE_BYTES = 1024 * MEGABYTE

CHILD = """
import resource, sys
from pathlib import Path
import torch
from vkrt.errors import VkrtError
{setup}

def used():
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

limit = used() + {spare}
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in sys.argv[1:]:
    before = peak()
    try:
        read(path)
        said = "read"
    except VkrtError as error:
        said = type(error).__name__ + " " + str(error)
        assert said.isprintable() and len(said) < 3000, said[:200]
    print(max(peak() - before, 0), said, flush=True)
"""


def outcomes(setup: str, paths: Iterable[Path], seconds: float = 60) -> list[tuple[int, str]]:
    """Return by how many bytes reading each file raised the peak of memory, and what came of it.

    Args:
        setup: Python that defines `read`, which takes a path.
        paths: the files; the largest last, as a peak hides smaller ones behind it.
        seconds: of CPU for all of them; more is a failure, and so is any error but vkrt's own.
    """
    code = CHILD.format(setup=setup, spare=SPARE_BYTES)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=10 * seconds,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds))),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = (line.partition(" ") for line in done.stdout.splitlines())
    return [(int(grown), said) for grown, _, said in lines]

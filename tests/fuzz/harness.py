"""Give damaged inputs to a parser: each is accepted or refused, in bounded time and memory.

Runs in a process of its own, so that one that hangs, crashes or takes all memory is found:
`python -m fuzz.harness COUNT TARGET...` with the folder tests on the path. Prints a line of JSON
for each target. Input number i of a target is the same in every run.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzz.mutators import mutate

from vkrt.errors import VkrtError

__all__ = ["Failure", "Target", "run"]

# Only to find what never ends, on any machine; the limits that the parsers state are for the rest.
HANG_SECONDS = 60
# What a small file may take at once, address space included.
MEMORY = 2 * 1024**3


@dataclass(frozen=True)
class Target:
    """Name a parser.

    Attributes:
        name: what is parsed.
        seeds: writes sound files into a folder and returns their contents.
        read: parses a damaged content; gets a folder to write it into.
        kind: of the seeds, a key of mutators.AWARE.
    """

    name: str
    seeds: Callable[[Path], Sequence[bytes]]
    read: Callable[[Path, bytes], Any]
    kind: str = "bytes"


@dataclass(frozen=True)
class Failure:
    """Hold an input that was neither accepted nor refused as it should be."""

    number: int
    error: str
    content: bytes


def run(target: Target, count: int, folder: Path) -> tuple[int, int, list[Failure]]:
    """Return how many of `count` inputs were accepted, how many refused, and the failures."""
    seeds = target.seeds(folder)
    for seed in seeds:
        target.read(folder, seed)
    accepted = refused = 0
    failures: list[Failure] = []
    with bounded_memory(), mark_of(target).open("wb", buffering=0) as mark:
        for number in range(count):
            content = mutate(random.Random(f"{target.name} {number}"), seeds, target.kind)
            # After a crash it says which input it was.
            os.pwrite(mark.fileno(), f"{number:12}".encode(), 0)
            faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
            try:
                target.read(folder, content)
                accepted += 1
            except VkrtError as error:
                refused += 1
                if "\n" in str(error) or not str(error):
                    failures.append(Failure(number, f"no one line: {error!r}", content))
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                failures.append(Failure(number, traceback.format_exc(limit=-6), content))
            finally:
                faulthandler.cancel_dump_traceback_later()
    return accepted, refused, failures


def mark_of(target: Target) -> Path:
    """Return the file that holds the number of the input at hand."""
    return Path(os.environ.get("FUZZ_MARKS", tempfile.gettempdir())) / f"fuzz-{target.name}.number"


class bounded_memory:
    """Refuse the process more than MEMORY beyond what it has."""

    def __enter__(self) -> None:
        self._before = resource.getrlimit(resource.RLIMIT_AS)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(
            resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, self._before[1])
        )

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_AS, self._before)


def main() -> None:
    from fuzz.targets import TARGETS

    faulthandler.enable()
    warnings.simplefilter("ignore")
    count, names = int(sys.argv[1]), sys.argv[2:]
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            before = time.process_time()
            accepted, refused, failures = run(TARGETS[name], count, Path(folder))
        report = {
            "target": name,
            "accepted": accepted,
            "refused": refused,
            "seconds": round(time.process_time() - before, 2),
            "failures": [[f.number, f.error, f.content[:4096].hex()] for f in failures[:20]],
            "failed": len(failures),
        }
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()

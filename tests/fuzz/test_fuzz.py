"""Every parser gets damaged inputs: it accepts or refuses them, in bounded time and memory.

FUZZ_INPUTS is how many each gets; `make fuzz` gives a million.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fuzz.targets import TARGETS

INPUTS = int(os.environ.get("FUZZ_INPUTS", "2000"))
TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Return what one process found of each parser; one that crashed it is missing."""
    marks = tmp_path_factory.mktemp("marks")
    path = os.pathsep.join((str(TESTS), str(TESTS.parent)))
    command = [sys.executable, "-m", "fuzz.harness", str(INPUTS)]
    found: dict[str, dict[str, Any]] = {}
    waiting = list(TARGETS)
    while waiting:
        done = subprocess.run(
            [*command, *waiting],
            capture_output=True,
            text=True,
            env=os.environ
            | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RUST_BACKTRACE": "0"}
            | {"FUZZ_MARKS": str(marks)},
        )
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        found |= {line["target"]: line for line in lines}
        waiting = waiting[len(lines) :]
        if waiting and done.returncode:
            mark = marks / f"fuzz-{waiting[0]}.number"
            number = mark.read_text() if mark.exists() else "none, the seeds"
            found[waiting[0]] = {"crash": f"input {number}: {done.stderr[-3000:]}"}
            waiting = waiting[1:]
    return found


@pytest.mark.parametrize("name", list(TARGETS))
def test_damage_is_refused(name: str, reports: dict[str, dict[str, Any]]) -> None:
    report = reports[name]
    assert "crash" not in report, report["crash"]
    assert not report["failed"], report["failures"][0]
    assert report["accepted"] + report["refused"] == INPUTS
    # What is damaged is not always so that it shows, and never always.
    assert report["refused"] > 0

"""The cache of bundles stays small: replaced ones go, but none that somebody uses or makes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from toys import HEADER, edit, write_toy

from vkrt.bundle import is_bundle
from vkrt.errors import CheckpointError
from vkrt.export.cache import cached_bundle
from vkrt.export.prune import KEPT, lock_of, mark_used, prune

pytest.importorskip("fcntl", reason="without it nothing is pruned")

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a function that writes a bundle, last used at a time, with changes to its manifest."""

    def write(name: str, used: int, **changes: Any) -> Path:
        folder = tmp_path / name
        write_toy(folder)
        edit(folder, lambda content: content.update(changes))
        os.utime(folder / "manifest.json", (used, used))
        return folder

    return write


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


def test_the_newest_and_the_last_used_of_the_others_stay(make: Make, tmp_path: Path) -> None:
    for name, used in (("oldest", 10), ("old", 20), ("last", 40), ("older", 15)):
        make(name, used)
    # The one that was just made stays, whatever its clock says.
    prune(make("newest", 5))
    assert left(tmp_path) == {"newest", "last"} and KEPT == 2


def test_what_holds_something_else_stays(make: Make, tmp_path: Path) -> None:
    others = {
        "model": {"model": "sam2.1-tiny"},
        "size": {"image_size": 96},
        "precision": {"precision": "fp16"},
        "weights": {"fingerprint": "others"},
        "unknown": {"fingerprint": None},
    }
    for name, changes in others.items():
        make(name, 1, **changes)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "manifest.json").write_text("{")
    (tmp_path / "no bundle").mkdir()
    (tmp_path / "file").touch()
    make("last", 9)
    prune(make("newest", 10))
    assert left(tmp_path) == {*others, "damaged", "no bundle", "file", "last", "newest"}


def test_bundles_of_another_schema_go_too(make: Make, tmp_path: Path) -> None:
    make("ancient", 1, schema=0)
    make("future", 2, schema=99)
    make("last", 3)
    prune(make("newest", 4))
    assert left(tmp_path) == {"last", "newest"}


USER = """
import sys
from pathlib import Path
from vkrt.export.prune import mark_used
for _ in range(2):
    mark_used(Path(sys.argv[1]))
print("used", flush=True)
sys.stdin.read()
"""


def test_what_another_process_uses_stays_until_it_ends(make: Make, tmp_path: Path) -> None:
    used = make("used", 1)
    command = [sys.executable, "-c", USER, str(used)]
    user = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert user.stdout is not None and user.stdout.readline() == "used\n"
    assert (used / "manifest.json").stat().st_mtime > 10**9
    os.utime(used / "manifest.json", (1, 1))
    make("last", 2)
    newest = make("newest", 3)
    prune(newest)
    assert left(tmp_path) == {"used", "last", "newest"} and is_bundle(used)
    user.communicate("")
    prune(newest)
    assert left(tmp_path) == {"last", "newest"}


def test_what_this_process_uses_stays(make: Make, tmp_path: Path) -> None:
    used = make("used", 1)
    mark_used(used)
    os.utime(used / "manifest.json", (1, 1))
    make("last", 2)
    prune(make("newest", 3))
    assert left(tmp_path) == {"used", "last", "newest"}


def test_what_somebody_makes_stays(make: Make, tmp_path: Path) -> None:
    making = make("making", 1)
    make("last", 2)
    newest = make("newest", 3)
    with FileLock(lock_of(making)):
        prune(newest)
        assert left(tmp_path) == {"making", "last", "newest"}
    prune(newest)
    assert left(tmp_path) == {"last", "newest"}


def test_a_new_bundle_prunes_and_a_found_one_does_not(tmp_path: Path) -> None:
    def get(name: str) -> None:
        bundle = cached_bundle(tmp_path / name, write_toy)
        assert bundle is not None and bundle.header == HEADER

    code = "import sys; sys.path.insert(0, sys.argv[1]); from test_prune import *; "
    code += "[cached_bundle(Path(sys.argv[2]) / name, write_toy) for name in 'ab']"
    # In a process of its own, because what this one uses would stay.
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)]
    subprocess.run(command, check=True)
    assert left(tmp_path) == {"a", "b"}
    os.utime(tmp_path / "b" / "manifest.json", (1, 1))
    get("a")
    assert left(tmp_path) == {"a", "b"}
    get("c")
    assert left(tmp_path) == {"a", "c"}


def test_a_place_that_cannot_be_read_is_no_failure(tmp_path: Path) -> None:
    mark_used(tmp_path / "nowhere")
    prune(tmp_path / "nowhere" / "newest")
    with pytest.raises(CheckpointError):
        cached_bundle(tmp_path / "d", lambda folder: folder.mkdir())

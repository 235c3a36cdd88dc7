"""Temporary files and folders, claims, and what killed processes leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vkrt import temporary
from vkrt.errors import OutputError
from vkrt.temporary import (
    TemporaryFile,
    TemporaryFolder,
    claim,
    discard,
    keep_beside,
    replace_folder,
    sweep,
)

# Does what the first argument says at the place of the second, tells so, and waits to be ended.
OWNER = """
import os, sys
from pathlib import Path
from vkrt.temporary import TemporaryFile, TemporaryFolder, claim

place = Path(sys.argv[2])
if sys.argv[1] == "folder":
    held = TemporaryFolder(place)
    (held.path / "half").write_text("of it")
elif sys.argv[1] == "file":
    held = TemporaryFile(place)
else:
    held = claim(place)
    held.__enter__()
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def owner(what: str, place: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a process that holds something until it is killed."""
    command = [sys.executable, "-c", OWNER, what, str(place)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def look_again(folder: Path) -> None:
    """Sweep a folder as the next process would."""
    temporary._swept.discard(folder)
    sweep(folder)


def names(folder: Path) -> list[str]:
    """Return what a folder holds, hidden or not."""
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize("what", ["folder", "file"])
def test_leftovers_go_once_their_owner_is_gone(tmp_path: Path, what: str) -> None:
    with owner(what, tmp_path) as process:
        (part,) = names(tmp_path)
        look_again(tmp_path)
        assert names(tmp_path) == [part]
        process.send_signal(signal.SIGKILL)
        process.wait()
        look_again(tmp_path)
        assert names(tmp_path) == []


def test_the_next_output_in_a_folder_removes_leftovers(tmp_path: Path) -> None:
    with owner("folder", tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(names(tmp_path)) == 1
    temporary._swept.discard(tmp_path)
    kept = TemporaryFile(tmp_path)
    assert names(tmp_path) == [kept.path.name]
    kept.remove()
    os.close(kept.descriptor)


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    for name in (".hidden", "a.part", ".0123456789ab.part", ".vkrt-notes", ".vkrt-xyz.part"):
        (tmp_path / name).mkdir()
    (tmp_path / ".vkrt-0123456789ab.part").symlink_to(tmp_path / ".hidden")
    before = names(tmp_path)
    look_again(tmp_path)
    assert names(tmp_path) == before


def test_what_is_in_use_here_stays(tmp_path: Path) -> None:
    folder, file = TemporaryFolder(tmp_path), TemporaryFile(tmp_path)
    look_again(tmp_path)
    assert names(tmp_path) == sorted((folder.path.name, file.path.name))
    folder.remove()
    file.remove()
    os.close(file.descriptor)
    assert names(tmp_path) == []


def test_a_place_is_claimed_by_one_process(tmp_path: Path) -> None:
    place = tmp_path / "out"
    with owner("claim", place) as process:
        with pytest.raises(OutputError, match="another vkrt is writing"), claim(place):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        with claim(place), claim(place):
            assert len(names(tmp_path)) == 1
    assert names(tmp_path) == []


def test_a_claim_by_another_name_of_the_place(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    with (
        owner("claim", tmp_path / "link" / "out"),
        pytest.raises(OutputError, match="another vkrt is writing"),
        claim(tmp_path / "out"),
    ):
        pass


def test_a_bundle_cut_off_while_it_was_replaced_comes_back(tmp_path: Path) -> None:
    older = tmp_path / ".tiny.vkrt.vkrt-0123456789ab.old"
    older.mkdir()
    (older / "manifest.json").touch()
    look_again(tmp_path)
    assert names(tmp_path) == ["tiny.vkrt"] and names(tmp_path / "tiny.vkrt") == ["manifest.json"]
    # With a successor there it is of no use any more.
    older.mkdir()
    look_again(tmp_path)
    assert names(tmp_path) == ["tiny.vkrt"]


def test_folders_change_places(tmp_path: Path) -> None:
    target = tmp_path / "t"
    for content in ("first", "second"):
        part = TemporaryFolder(tmp_path)
        (part.path / content).touch()
        replace_folder(part.path, target)
        part.remove()
        assert names(tmp_path) == ["t"] and names(target) == [content]
    assert keep_beside(target, target) == tmp_path / "t-2"
    discard(tmp_path / "t-2")
    assert names(tmp_path) == []

"""Output files: whole or not at all, and nothing else left in the folder."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from vkrt.errors import CheckpointError, OutputError
from vkrt.media import files
from vkrt.media.files import check_writable, write_atomically


def writing(data: bytes) -> Callable[[BinaryIO], None]:
    """Return what writes some bytes."""

    def write(stream: BinaryIO) -> None:
        stream.write(data)

    return write


def failing(error: BaseException) -> Callable[[BinaryIO], None]:
    """Return what writes a little and then fails."""

    def write(stream: BinaryIO) -> None:
        stream.write(b"half")
        stream.flush()
        raise error

    return write


def listing(folder: Path) -> list[str]:
    """Return the names in a folder."""
    return sorted(os.listdir(folder))


def test_new_file_has_the_usual_mode(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    before = os.umask(0o027)
    try:
        write_atomically(path, writing(b"all of it"))
    finally:
        os.umask(before)
    assert path.read_bytes() == b"all of it" and listing(tmp_path) == ["out.bin"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_file_is_replaced_at_the_end_only(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")

    def write(stream: BinaryIO) -> None:
        stream.write(b"new")
        stream.flush()
        assert path.read_bytes() == b"old"

    write_atomically(str(path), write)
    assert path.read_bytes() == b"new" and listing(tmp_path) == ["out.bin"]


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), ValueError("no"), CheckpointError("damaged"), SystemExit(3)]
)
def test_other_errors_pass_through_and_leave_nothing(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    with pytest.raises(type(error)):
        write_atomically(path, failing(error))
    assert path.read_bytes() == b"old" and listing(tmp_path) == ["out.bin"]


@pytest.mark.parametrize(
    ("code", "remedy"),
    [(errno.ENOSPC, "free some space"), (errno.EDQUOT, "quota"), (errno.EIO, "another place")],
)
def test_full_disk(tmp_path: Path, code: int, remedy: str) -> None:
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match=remedy) as caught:
        write_atomically(path, failing(OSError(code, os.strerror(code))))
    assert os.strerror(code) in str(caught.value) and "\n" not in str(caught.value)
    assert path.read_bytes() == b"old" and listing(tmp_path) == ["out.bin"]


@pytest.mark.parametrize(
    "check", [check_writable, lambda path: write_atomically(path, writing(b""))]
)
class TestRefusals:
    """Both functions refuse the same places."""

    def test_missing_folder(self, tmp_path: Path, check: Callable[[Path], None]) -> None:
        with pytest.raises(OutputError, match=r"none does not exist; make it"):
            check(tmp_path / "none" / "out.bin")
        assert listing(tmp_path) == []

    def test_target_is_a_folder(self, tmp_path: Path, check: Callable[[Path], None]) -> None:
        with pytest.raises(OutputError, match="is a folder; give a file name"):
            check(tmp_path)

    def test_parent_is_a_file(self, tmp_path: Path, check: Callable[[Path], None]) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match="does not exist"):
            check(tmp_path / "file" / "out.bin")

    def test_device(self, tmp_path: Path, check: Callable[[Path], None]) -> None:
        with pytest.raises(OutputError, match="not a plain file"):
            check(Path(os.devnull))

    def test_long_name(self, tmp_path: Path, check: Callable[[Path], None]) -> None:
        with pytest.raises(OutputError, match="choose"):
            check(tmp_path / ("x" * 300))
        assert listing(tmp_path) == []

    def test_name_with_a_null(self, check: Callable[[Path], None]) -> None:
        with pytest.raises(OutputError, match="is no file name"):
            check(Path("a\0b"))

    def test_no_permission(
        self, tmp_path: Path, check: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> int:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(files.os, "open", refuse)
        with pytest.raises(OutputError, match=r"Permission denied\); choose a folder that you may"):
            check(tmp_path / "out.bin")

    @pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
    def test_real_permissions(self, tmp_path: Path, check: Callable[[Path], None]) -> None:
        path = tmp_path / "out.bin"
        path.write_bytes(b"old")
        path.chmod(0o444)
        with pytest.raises(OutputError, match="write-protected"):
            check(path)
        tmp_path.chmod(0o555)
        try:
            with pytest.raises(OutputError, match="choose a folder that you may"):
                check(tmp_path / "new.bin")
        finally:
            tmp_path.chmod(0o755)
        assert path.read_bytes() == b"old"

    @pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc")
    def test_folder_that_takes_no_files(self, check: Callable[[Path], None]) -> None:
        with pytest.raises(OutputError, match="can't be written"):
            check(Path("/proc/out.bin"))


def test_check_leaves_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    check_writable(path)
    assert listing(tmp_path) == []
    path.write_bytes(b"old")
    check_writable(path)
    assert listing(tmp_path) == ["out.bin"] and path.read_bytes() == b"old"


def test_link_is_followed(tmp_path: Path) -> None:
    real, link = tmp_path / "real.bin", tmp_path / "link.bin"
    real.write_bytes(b"old")
    link.symlink_to(real)
    write_atomically(link, writing(b"new"))
    assert link.is_symlink() and real.read_bytes() == b"new"


def test_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_writable("out.bin")
    write_atomically("out.bin", writing(b"here"))
    assert (tmp_path / "out.bin").read_bytes() == b"here"

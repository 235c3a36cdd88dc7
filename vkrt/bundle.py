"""A bundle: what is deployed. A folder with manifest.json and one .onnx per stage. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vkrt.errors import CheckpointError, OutputError
from vkrt.manifest import GET_AGAIN, MANIFEST, Header, digest_of, read_manifest
from vkrt.onnx_file import external_files
from vkrt.stage import Stage
from vkrt.steps import CutFile, Piece
from vkrt.temporary import TemporaryFolder, claim, explained, keep_beside, replace_folder

__all__ = ["Bundle", "building", "is_bundle", "read_bundle"]


class Stages(dict[str, Stage]):
    """Hold stages by name; asking for one that is not there is told in one line."""

    def __init__(self, folder: Path, stages: Mapping[str, Stage]) -> None:
        super().__init__(stages)
        self.folder = folder

    def __missing__(self, name: str) -> Stage:
        raise CheckpointError(
            f"{self.folder} has no stage {name!r}, which this vkrt needs: export it again"
        )


@dataclass(frozen=True)
class Bundle:
    """Hold a bundle whose files were verified.

    Attributes:
        folder: where it is.
        header: what it holds.
        stages: its stages by name; the module of each is the path of its .onnx file, or a CutFile.
        bytes: the size of each of its files by name.
    """

    folder: Path
    header: Header
    stages: Mapping[str, Stage]
    bytes: Mapping[str, int]


def is_bundle(path: str | os.PathLike[str]) -> bool:
    """Tell whether a path is a folder with a manifest."""
    return os.path.isfile(os.path.join(path, MANIFEST))


def read_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read a bundle and verify all of it, before any of it runs.

    Raises:
        CheckpointError: a file is missing, changed or outside the folder, an .onnx file refers to
            one that the manifest does not list, or the manifest is damaged or of a newer schema.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    for name, (size, digest) in manifest.files.items():
        check_file(folder, name, size, digest)
    for stage in manifest.stages.values():
        for file in graph_files(stage):
            check_references(file, manifest.files)
    sizes = {name: size for name, (size, _) in manifest.files.items()}
    return Bundle(folder, manifest.header, Stages(folder, manifest.stages), sizes)


def graph_files(stage: Stage) -> list[Path]:
    """Return every .onnx file of a stage."""
    if not isinstance(stage.module, CutFile):
        return [stage.module]
    pieces = [step.path for step in stage.module.steps if isinstance(step, Piece)]
    return [stage.module.path, *pieces]


def check_file(folder: Path, name: str, size: int, digest: str) -> None:
    """Refuse a file that is not what the manifest says."""
    path = folder / name
    try:
        real = path.resolve(strict=True)
        inside = real.parent == folder.resolve() and real.is_file()
        same = inside and real.stat().st_size == size and digest_of(real) == digest
    except FileNotFoundError:
        raise CheckpointError(f"{folder} lacks {name}: {GET_AGAIN}") from None
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read ({error}): {GET_AGAIN}") from None
    if not inside:
        raise CheckpointError(f"{path} is a link out of its folder or no file: {GET_AGAIN}")
    if not same:
        raise CheckpointError(f"{path} was changed since the export: {GET_AGAIN}")


def check_references(path: Path, files: Collection[str]) -> None:
    """Refuse an .onnx file that keeps tensors in a file whose digest was not verified."""
    strays = sorted(external_files(path) - set(files))
    if strays:
        raise CheckpointError(
            f"{path} keeps data in {strays[0]!r:.200}, which is no file of the bundle: "
            "get it from a source you trust"
        )


@contextmanager
def building(target: str | os.PathLike[str], force: bool = False) -> Iterator[Path]:
    """Give a new folder beside `target` to write a bundle into, and rename it once it is whole.

    Whatever goes wrong, nothing is left behind and an older bundle stays as it was. Nobody else
    can build at the same place meanwhile.

    Args:
        target: the folder to make.
        force: replace a bundle that is there; anything else is never replaced.

    Raises:
        OutputError: the target can't be made, or exists; where another program made it meanwhile,
            the finished bundle stays beside it, under the name that the message says.
    """
    real = Path(os.path.realpath(target))
    check_target(real, force)
    with explained(target), claim(real):
        # Whoever had the place before may have filled it.
        check_target(real, force)
        part = TemporaryFolder(real.parent)
        try:
            yield part.path
            read_bundle(part.path)
            put_in_place(part.path, real, force)
        finally:
            part.remove()


def check_target(real: Path, force: bool) -> None:
    """Refuse a place where a bundle can't go, before any long work."""
    if not real.parent.is_dir():
        raise OutputError(f"folder {real.parent} does not exist; make it or choose another")
    if os.path.lexists(real) and not force:
        raise OutputError(f"{real} exists; choose another folder, or replace it with --force")
    if os.path.lexists(real) and not is_bundle(real):
        raise OutputError(f"{real} is no bundle, so it is not replaced; choose another folder")


def put_in_place(part: Path, real: Path, force: bool) -> None:
    """Give a whole bundle its name, or another one if something else has that by now."""
    try:
        check_target(real, force)
        replace_folder(part, real)
    except (OutputError, OSError) as error:
        kept = keep_beside(part, real)
        reason = "was made by another program meanwhile"
        if isinstance(error, OSError) and error.strerror:
            reason = f"can't be replaced ({error.strerror})"
        raise OutputError(f"{real} {reason}: the finished bundle is in {kept}") from error

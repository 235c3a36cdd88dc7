"""A bundle: what is deployed. A folder with manifest.json and one .onnx per stage. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from vkrt.array_sizes import check_sizes
from vkrt.errors import CheckpointError, OutputError
from vkrt.graph_ports import check_ports
from vkrt.manifest import GET_AGAIN, MANIFEST, Header, Manifest, read_manifest
from vkrt.onnx_graph import Graph, OnnxFile
from vkrt.operators import check_operators
from vkrt.stage import Stage
from vkrt.steps import CutFile, Piece
from vkrt.temporary import TemporaryFolder, claim, explained, keep_beside, replace_folder
from vkrt.verified import Verified, check_unchanged, verify
from vkrt.weights.safety_limits import shown

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
        CheckpointError: a file is missing, changed or outside the folder; an .onnx file refers to
            one that the manifest does not list, has an operator that no export of vkrt writes, may
            be read otherwise by a runtime, or has other inputs and outputs than the ports of its
            stage; or the manifest is damaged or of a newer schema.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    graphs = {file.name for stage in manifest.stages.values() for file in graph_files(stage)}
    found = {
        name: verify(folder, name, size, digest, name in graphs)
        for name, (size, digest) in manifest.files.items()
    }
    stages = {name: checked(folder, s, manifest, found) for name, s in manifest.stages.items()}
    sizes = {name: size for name, (size, _) in manifest.files.items()}
    return Bundle(folder, manifest.header, Stages(folder, stages), sizes)


def graph_files(stage: Stage) -> list[Path]:
    """Return every .onnx file of a stage."""
    if not isinstance(stage.module, CutFile):
        return [stage.module]
    pieces = [step.path for step in stage.module.steps if isinstance(step, Piece)]
    return [stage.module.path, *pieces]


def checked(folder: Path, stage: Stage, manifest: Manifest, found: Mapping[str, Verified]) -> Stage:
    """Return a stage that knows its files again, once its graphs are found to be sound."""
    graphs: dict[Path, Graph] = {}
    names: set[str] = set()
    for path in graph_files(stage):
        if path in graphs:
            continue
        onnx = found[path.name].onnx
        assert onnx is not None, "it was parsed"
        check_references(path, onnx, manifest)
        graphs[path] = onnx.graph
        names |= {path.name} | {each.location for each in onnx.external}
        try:
            check_operators(onnx)
        except ValueError as error:
            raise CheckpointError(
                f"{path} is refused: {error}; get it from a source you trust"
            ) from None
    try:
        check_ports(stage, graphs)
        check_sizes(stage, graphs)
    except ValueError as error:
        raise CheckpointError(
            f"stage {shown(stage.name, 60)} of {folder} does not fit its graph ({error}): "
            f"{GET_AGAIN}"
        ) from None
    stamps = {name: found[name].stamp for name in sorted(names)}
    return replace(stage, check=partial(check_unchanged, folder, stamps))


def check_references(path: Path, onnx: OnnxFile, manifest: Manifest) -> None:
    """Refuse an .onnx file that keeps tensors in a file whose digest was not verified."""
    for each in sorted(onnx.external, key=lambda each: each.location):
        size, _ = manifest.files.get(each.location, (None, ""))
        if size is None or each.location == path.name:
            raise CheckpointError(
                f"{path} keeps data in {each.location!r:.200}, which is no file of the bundle: "
                "get it from a source you trust"
            )
        if each.offset + each.length > size:
            raise CheckpointError(
                f"{path} keeps data beyond the end of {each.location}: {GET_AGAIN}"
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

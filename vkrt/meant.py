"""What a caller means by a model and a checkpoint: which family, which name, which weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vkrt import catalog
from vkrt.bundle import Bundle, is_bundle, read_bundle
from vkrt.errors import UnknownModelError
from vkrt.load_arguments import check_sources
from vkrt.manifest import SD35, read_manifest
from vkrt.weights.family import NOT_RUN, family_by_name, find_sd35, holds_sd35

__all__ = ["Meant", "Paths", "understand"]

# One path, or one for each component, by name.
Paths = Mapping[str, str | os.PathLike[str]] | str | os.PathLike[str]


@dataclass(frozen=True)
class Meant:
    """Say what to load or to export.

    Attributes:
        name: of the model, a catalog name where it makes pictures; None where a path alone was
            given.
        source: file or folder of its weights; None is those that are packaged or downloaded.
        makes_pictures: whether it is Stable Diffusion 3.5.
    """

    name: str | None
    source: Path | None
    makes_pictures: bool

    @property
    def has_bundle(self) -> bool:
        """Tell whether the source is a bundle, which is not read."""
        return self.source is not None and is_bundle(self.source)

    def bundle(self) -> Bundle | None:
        """Return the bundle that the source is, or None.

        Raises:
            CheckpointError: it is damaged.
        """
        source = self.source
        return read_bundle(source) if source is not None and self.has_bundle else None


def understand(model: str | os.PathLike[str], checkpoint: str | os.PathLike[str] | None) -> Meant:
    """Return what the arguments of vkrt.load mean; a name goes before a path that is called so.

    Raises:
        UnknownModelError: the model is no name, and there is no such path.
        CheckpointError: it is a bundle whose manifest can't be read.
    """
    check_sources(model, checkpoint)
    text, place = os.fspath(model), Path(model)
    source = None if checkpoint is None else Path(checkpoint)
    name = find_sd35(text)
    if name is not None:
        return Meant(name, source, makes_pictures=True)
    if source is not None:
        return Meant(text, source, makes_pictures=False)
    try:
        catalog.find(text)
    except UnknownModelError:
        if not place.exists():
            family = family_by_name(text)
            if family is not None:
                raise UnknownModelError(f"{text!r:.200} is {family}, {NOT_RUN}") from None
            raise
        return Meant(None, place, makes_pictures=holds_pictures(place))
    return Meant(text, None, makes_pictures=False)


def holds_pictures(place: Path) -> bool:
    """Tell whether a bundle or a checkpoint is of Stable Diffusion 3.5."""
    if is_bundle(place):
        return read_manifest(place).header.family == SD35
    return holds_sd35(place)

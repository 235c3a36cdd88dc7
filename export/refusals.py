"""Exports that failed, remembered beside where their bundles would be; imports no torch."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vkrt import __version__
from vkrt.errors import VkrtError
from vkrt.manifest import read_json
from vkrt.media.files import write_atomically

__all__ = [
    "SUFFIX",
    "Refusal",
    "all_refusals",
    "forget_refusal",
    "read_refusal",
    "tell",
    "versions",
    "write_refusal",
]

SUFFIX = ".refused.json"
# What decides whether an export succeeds, beside vkrt's own sources, which are in the key.
PACKAGES = ("torch", "onnxruntime", "onnx", "onnxscript", "onnx-ir")
# A full disk or too little memory may pass: nobody is kept from trying again for longer.
PASSES_AFTER_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Refusal:
    """Say why a checkpoint is no bundle.

    Attributes:
        model: what was exported, by its name or file.
        checkpoint: the path of its weights.
        reason: the error's message.
        versions: of the packages that took part.
        lasting: whether only other versions help; else it was the machine's state.
        time: when it happened, in seconds since 1970.
        told: whether a person was told of it.
    """

    model: str
    checkpoint: str
    reason: str
    versions: dict[str, str]
    lasting: bool = True
    time: float = field(default_factory=time.time)
    told: bool = False

    @property
    def holds(self) -> bool:
        """Tell whether another try would end in the same way."""
        if not self.lasting:
            return time.time() - self.time < PASSES_AFTER_SECONDS
        return self.versions == versions()


def versions() -> dict[str, str]:
    """Return the version of everything that takes part in an export."""
    return {"vkrt": __version__, **{name: version_of(name) for name in PACKAGES}}


def version_of(package: str) -> str:
    """Return the version of a package, "" where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def place(folder: Path) -> Path:
    """Return the file of the refusal of a bundle's folder."""
    return folder.with_name(f"{folder.name}{SUFFIX}")


def write_refusal(folder: Path, refusal: Refusal) -> None:
    """Remember a refusal, if the cache can be written."""
    text = json.dumps(asdict(refusal), indent=1).encode()
    with suppress(VkrtError, OSError):
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place(folder), lambda file: file.write(text))


def forget_refusal(folder: Path) -> None:
    """Drop the refusal of a bundle's folder."""
    with suppress(OSError):
        place(folder).unlink(missing_ok=True)


def read_refusal(folder: Path) -> Refusal | None:
    """Return why there is no bundle in a folder; None where a try is worth it."""
    found = parse(place(folder))
    return found if found is not None and found.holds else None


def parse(path: Path) -> Refusal | None:
    """Return what a file says, None where it is damaged or not there."""
    try:
        content: dict[str, Any] = read_json(path)
        return Refusal(
            model=str(content["model"]),
            checkpoint=str(content["checkpoint"]),
            reason=str(content["reason"]),
            versions={str(k): str(v) for k, v in dict(content["versions"]).items()},
            lasting=bool(content["lasting"]),
            time=float(content["time"]),
            told=bool(content["told"]),
        )
    except (VkrtError, KeyError, TypeError, ValueError):
        return None


def tell(folder: Path, refusal: Refusal) -> bool:
    """Return whether a person is yet to be told of a refusal, and remember that one is now."""
    if not refusal.told:
        write_refusal(folder, replace(refusal, told=True))
    return not refusal.told


def all_refusals(bundles: Path) -> dict[Path, Refusal]:
    """Return every refusal in a folder of bundles that still holds, by its file."""
    found = {path: parse(path) for path in sorted(bundles.glob(f"*{SUFFIX}"))}
    return {path: refusal for path, refusal in found.items() if refusal and refusal.holds}

"""The LoRAs of a model that runs: put on what is loaded, and on what will be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from vkrt.models.sd35.stages import PARTS
from vkrt.weights.lora import Adapter, apply, check, read_lora
from vkrt.weights.sd35_stages import LazyStages

__all__ = ["LoraStack"]

TEXT_ENCODERS = frozenset({"clip_l", "clip_g", "t5"})


class LoraStack:
    """Keep the LoRAs of a model's stages; weights are changed in place, none is loaded again.

    Args:
        stages: whatever is loaded from here on has the LoRAs too.

    Attributes:
        key: says what is on the text encoders; "" where nothing is.
        named: file and scale of each LoRA, in order.
    """

    def __init__(self, stages: LazyStages) -> None:
        self.key = ""
        self.named: list[dict[str, Any]] = []
        self._stages = stages

    def add(self, path: Path, scale: float, loaded: Mapping[str, Any]) -> None:
        """Put one on, besides those that are on.

        Args:
            path: its file, or the folder of one.
            scale: 1 is as it was trained.
            loaded: the modules that are in memory, by stage.

        Raises:
            CheckpointError: it is damaged or for another model; then nothing was changed.
        """
        adapter = Adapter(read_lora(path), scale)
        wanted = [*self._stages.adapters, adapter]
        weights = self._stages.weights
        check([adapter], {part: weights.shapes(part) for part in weights.parts})
        self._put(wanted, loaded)
        self.named = [*self.named, {"file": str(path), "scale": scale}]
        if adapter.lora.parts & TEXT_ENCODERS:
            self.key += f"{path} {stamp(path)} {scale}\n"

    def clear(self, loaded: Mapping[str, Any]) -> None:
        """Take all off: every weight of the modules in memory is as it was, bit for bit."""
        self._put([], loaded)
        self.key, self.named = "", []

    def _put(self, adapters: list[Adapter], loaded: Mapping[str, Any]) -> None:
        """Make these the LoRAs, everywhere or nowhere."""
        modules = {PARTS[stage]: inner(module) for stage, module in loaded.items()}
        try:
            for part, module in modules.items():
                apply(module, part, adapters)
        except BaseException:
            # Memory ran out, or the user did not wait: no module may differ from the others.
            for part, module in modules.items():
                apply(module, part, self._stages.adapters)
            raise
        self._stages.adapters = adapters


def inner(module: nn.Module) -> nn.Module:
    """Return the module that has the part's own names: a controlled denoiser holds one."""
    held = getattr(module, "denoiser", module)
    return held if isinstance(held, nn.Module) else module


def stamp(path: Path) -> list[int]:
    """Return what changes when a file, or one of a folder's, is written again."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file.stat().st_mtime_ns for file in files]

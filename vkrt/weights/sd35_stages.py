"""The stages of an opened Stable Diffusion 3.5, each loaded when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vkrt.models.sd35.stages import PARTS, stage_of
from vkrt.stage import Stage
from vkrt.weights.lora import Adapter, apply
from vkrt.weights.sd35 import Sd35Weights

__all__ = ["LazyStages"]

DEFAULT_DTYPE = "fp32"


class LazyStages(Mapping[str, Stage]):
    """Map stage names to stages; each look-up loads the weights anew and keeps nothing.

    Whoever looks a stage up holds its memory, and frees it by letting go.

    Args:
        weights: what to load from.
        dtypes: the dtype of each part ("fp32", "bf16", "fp16"); "fp32" for those left out.

    Attributes:
        adapters: LoRAs that are put on every part that is loaded from now on.
    """

    def __init__(self, weights: Sd35Weights, dtypes: Mapping[str, str]) -> None:
        self.weights = weights
        self.dtypes = dict(dtypes)
        self.adapters: list[Adapter] = []

    def __getitem__(self, name: str) -> Stage:
        """Load a stage.

        Raises:
            KeyError: there is no stage of that name.
            CheckpointError: its part is not in the checkpoint (the message says how to give it),
                is damaged, or a LoRA does not fit it.
        """
        part = PARTS[name]
        module = self.weights.load(part, self.dtypes.get(part, DEFAULT_DTYPE))
        if self.adapters:
            apply(module, part, self.adapters)
        return stage_of(name, module, self.weights.config)

    def __contains__(self, name: object) -> bool:
        """Return whether a stage can be loaded; nothing is."""
        return isinstance(name, str) and PARTS.get(name) in self.weights.parts

    def __iter__(self) -> Iterator[str]:
        """Give the names of the stages whose parts are there."""
        return (name for name in PARTS if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def bytes(self, name: str) -> int:
        """Return the bytes of a stage's weights in its dtype, without loading them."""
        part = PARTS[name]
        return self.weights.bytes(part, self.dtypes.get(part, DEFAULT_DTYPE))

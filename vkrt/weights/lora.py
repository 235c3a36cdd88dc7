"""Put LoRAs on a module's weights, in place, and take them off again, bit for bit."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from vkrt.errors import CheckpointError
from vkrt.weights.lora_file import Lora, read_lora
from vkrt.weights.lora_layer import Layer
from vkrt.weights.lora_names import Range, Target, Targets
from vkrt.weights.safety_limits import shown

__all__ = ["Adapter", "Lora", "LoraSet", "apply", "check", "merge", "read_lora", "remove"]

Shapes = Mapping[str, tuple[int, ...]]


class Adapter(NamedTuple):
    """Say which LoRA to use, and how much of it: 0 is none, 1 as trained."""

    lora: Lora
    scale: float = 1.0


class Change(NamedTuple):
    """Say what a layer adds to rows of a weight."""

    layer: Layer
    ranges: tuple[Range, ...]
    scale: float


class LoraSet:
    """Hold which LoRAs are on a module, and the weights that they changed as they were.

    The weights are changed where they are, so that a program made from the module, compiled or
    captured, runs on with them. The originals lie on the host, pinned where the module is on a
    GPU: as many bytes as the weights that are changed.
    """

    def __init__(self, module: nn.Module, part: str) -> None:
        """Take a module, which is not kept alive, and the name of the part that it is."""
        self.module = cast(nn.Module, weakref.proxy(module))
        self.part = part
        self.originals: dict[str, Tensor] = {}

    @torch.no_grad()
    def apply(self, adapters: Sequence[Adapter]) -> None:
        """Make these the LoRAs on the module, in place of those that are on it.

        Raises:
            CheckpointError: one does not fit; then nothing was changed.
        """
        changes = fit(self.part, shapes_of(self.module), adapters)
        try:
            for name in self.originals.keys() - changes.keys():
                self.restore(name)
            for name, wanted in changes.items():
                weight = self.module.get_parameter(name)
                if name not in self.originals:
                    self.originals[name] = host_copy(weight)
                weight.copy_(changed(self.originals[name].to(weight.device), wanted))
        except BaseException:
            # Half a LoRA is worse than none: memory ran out, or the user did not wait.
            self.remove()
            raise

    @torch.no_grad()
    def remove(self) -> None:
        """Take all LoRAs off: every weight is as it was, and the originals are let go."""
        for name in list(self.originals):
            self.restore(name)

    def restore(self, name: str) -> None:
        """Put a weight back and let its original go."""
        self.module.get_parameter(name).copy_(self.originals[name])
        del self.originals[name]


# What `apply` has put on which module; a module that is dropped takes its originals with it.
SETS: weakref.WeakKeyDictionary[nn.Module, LoraSet] = weakref.WeakKeyDictionary()


def apply(module: nn.Module, part: str, adapters: Sequence[Adapter]) -> None:
    """Make these the LoRAs on a module, in place of those that an earlier call put on it.

    Of each LoRA only what concerns `part` is used; see LoraSet.

    Args:
        module: with float32, bfloat16 or float16 weights; the sums are made in float32.
        part: "denoiser", "conditioning", "clip_l", "clip_g" or "t5"; no LoRA concerns another.
        adapters: added up in this order.

    Raises:
        CheckpointError: one does not fit; then nothing was changed.
    """
    if module not in SETS:
        SETS[module] = LoraSet(module, part)
    SETS[module].apply(adapters)


def remove(module: nn.Module, part: str) -> None:
    """Take off what `apply` put on a module: every weight is as it was, bit for bit."""
    apply(module, part, [])


@torch.no_grad()
def merge(module: nn.Module, part: str, adapters: Sequence[Adapter]) -> None:
    """Add LoRAs to a module's weights for good: no originals are kept.

    Arguments and errors as in `apply`.
    """
    for name, wanted in fit(part, shapes_of(module), adapters).items():
        weight = module.get_parameter(name)
        weight.copy_(changed(weight, wanted))


def check(adapters: Sequence[Adapter], parts: Mapping[str, Shapes]) -> None:
    """Check LoRAs against a whole model before any of it is loaded or changed.

    Args:
        adapters: to be used together.
        parts: the shapes of the parameters of every part that there is, by name; what concerns
            an absent part is not checked.

    Raises:
        CheckpointError: one does not fit; the message names its first weight that does not.
    """
    for part, shapes in parts.items():
        fit(part, shapes, adapters)


def fit(part: str, shapes: Shapes, adapters: Iterable[Adapter]) -> dict[str, list[Change]]:
    """Return what LoRAs do to each weight of a part.

    Raises:
        CheckpointError: a weight is unknown or has another shape, or a scale is not finite.
    """
    targets = Targets(part, shapes)
    changes: dict[str, list[Change]] = {}
    for lora, scale in adapters:
        if not math.isfinite(scale):
            raise CheckpointError(
                f"the scale of {shown(lora.path, 1000)} is {scale}: give a number"
            )
        for layer in lora.layers:
            if layer.address.part != part:
                continue
            target = find(targets, lora, layer)
            if scale:
                change = Change(layer, target.ranges, scale)
                changes.setdefault(target.weight, []).append(change)
    return changes


def find(targets: Targets, lora: Lora, layer: Layer) -> Target:
    """Return the weight that a layer changes."""
    try:
        target = targets.find(layer.address)
    except CheckpointError as error:
        raise CheckpointError(f"{shown(lora.path, 1000)}: {error}") from None
    if target is None:
        raise foreign(lora, layer, "no weight of that name")
    if target.shape != layer.matrix.shape:
        raise foreign(lora, layer, f"{as_text(target.shape)} there")
    return target


def foreign(lora: Lora, layer: Layer, instead: str) -> CheckpointError:
    """Return the error for a LoRA that was trained on something else."""
    return CheckpointError(
        f"{shown(lora.path, 1000)} is for another model: it changes {shown(layer.name)} "
        f"({as_text(layer.matrix.shape)}), and the {layer.address.part} of this one has "
        f"{instead}: give a LoRA that was trained on this model"
    )


def as_text(shape: tuple[int, int]) -> str:
    """Return a shape as a message shows it."""
    return f"{shape[0]}x{shape[1]}"


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter that can be changed, by name."""
    return {
        name: tuple(weight.shape)
        for name, weight in module.named_parameters()
        if weight.is_floating_point()
    }


def host_copy(weight: Tensor) -> Tensor:
    """Return a copy on the host, pinned if the way back leads to a GPU."""
    host = torch.empty(weight.shape, dtype=weight.dtype, pin_memory=weight.is_cuda)
    return host.copy_(weight)


def changed(weight: Tensor, changes: Iterable[Change]) -> Tensor:
    """Return a weight with changes added, in float32; each sees the weight as it was."""
    base = weight.float().flatten(1)
    total = base.clone()
    for layer, ranges, scale in changes:
        rows = [base[start:stop] for start, stop in ranges]
        change = layer.change(rows[0] if len(rows) == 1 else torch.cat(rows))
        sizes = [stop - start for start, stop in ranges]
        for (start, stop), piece in zip(ranges, change.split(sizes), strict=True):
            total[start:stop].add_(piece, alpha=scale)
    return total.view(weight.shape)

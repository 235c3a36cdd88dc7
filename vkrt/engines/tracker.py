"""The step of tracking: the objects of one frame, in batches, through the stages and the bank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vkrt.arguments import flag
from vkrt.backends.base import Backend
from vkrt.engines.programs import Programs
from vkrt.engines.prompt import UNPROMPTED, Ask
from vkrt.errors import CheckpointError, PromptError
from vkrt.media.masks import fill_small_holes
from vkrt.memory.bank import BankShape, MemoryBank
from vkrt.models.sam2.config import Sam2Config
from vkrt.stage import Stage

__all__ = ["MAX_CONDITIONING", "Answer", "Tracker", "TrackerOptions", "bank_shape"]

# Prompted frames that an object may remember: a gigabyte of them at an input of 1024 pixels.
MAX_CONDITIONING = 1024


@dataclass(frozen=True)
class TrackerOptions:
    """Say what SAM 2's own builder calls postprocessing, as far as later frames depend on it.

    Attributes:
        dynamic_multimask: where a single mask is unstable, take the best of three instead.
        binarize_prompts: remember prompted frames as the masks that are shown; else as the
            sigmoid of their logits, as all other frames.
        fill_holes: largest hole of a prompted frame's mask that is filled before the mask is
            remembered or refined, in low-resolution pixels; 0 leaves all.
        threads: CPU threads; None is one per core.
    """

    dynamic_multimask: bool = True
    binarize_prompts: bool = True
    fill_holes: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("dynamic_multimask", "binarize_prompts"):
            flag(name, getattr(self, name), kind=PromptError)


@dataclass(frozen=True)
class Answer:
    """Hold what a frame gave for one object.

    Attributes:
        logits: (h, w) float32 on the host.
        score: predicted IoU.
        object_score: logit: above 0, the object is visible.
        memory: (L, M) device array.
        pointer: (C,) device array.
        conditioning: whether later frames are conditioned on it.
    """

    logits: np.ndarray
    score: float
    object_score: float
    memory: Any
    pointer: Any
    conditioning: bool


def bank_shape(config: Sam2Config, conditioning: int) -> BankShape:
    """Return an object's share of the bank of a model."""
    memory = config.memory
    return BankShape(
        pixels=config.embed_size**2,
        mem_dim=memory.mem_dim,
        pointer_dim=config.hidden_dim,
        conditioning=conditioning,
        recent=memory.num_maskmem - 1,
        pointers=memory.max_obj_ptrs - 1,
    )


class Tracker:
    """Advance objects by one frame, and keep what they leave in a bank.

    Objects that are asked for alike go through the stages as one batch, whatever their number;
    without prompts that is all of them.

    Attributes:
        objects: ids in the order of their rows in the bank.
        bank: their memories.
    """

    def __init__(
        self,
        stages: Mapping[str, Stage],
        programs: Programs,
        backend: Backend,
        shape: BankShape,
        options: TrackerOptions = TrackerOptions(),
    ) -> None:
        self._stages = stages
        self._programs = programs
        self._backend = backend
        self.options = options
        self.objects: list[int] = []
        self.bank = MemoryBank(backend, shape)

    @property
    def options(self) -> TrackerOptions:
        """Return how answers are chosen and remembered; they may be changed at any time."""
        return self._options

    @options.setter
    def options(self, options: TrackerOptions) -> None:
        if not options.dynamic_multimask and not can_keep_single(self._stages["track_decoder"]):
            raise CheckpointError(
                "this bundle was exported by a version that always chose the best of three masks "
                "where one is unstable: export it again to track without that (dynamic_multimask, "
                "apply_postprocessing)"
            )
        self._options = options

    def add(self, obj: int) -> None:
        """Add an object that has no memories yet."""
        self.bank.add()
        self.objects.append(obj)

    def remove(self, obj: int) -> None:
        """Remove an object and its memories."""
        self.bank.remove(self.objects.index(obj))
        self.objects.remove(obj)

    def clear(self) -> None:
        """Remove every object."""
        self.bank.clear()
        self.objects.clear()

    def duplicate(self) -> Tracker:
        """Return a tracker of the same objects, with memories of its own."""
        twin = Tracker.__new__(Tracker)
        twin.__dict__.update(self.__dict__)
        twin.objects = list(self.objects)
        twin.bank = self.bank.duplicate()
        return twin

    def to_host(self, array: Any) -> np.ndarray:
        """Return a copy of a device array on the host, so that nothing else is kept alive by it."""
        return self._backend.to_host(array).copy()

    def to_device(self, array: np.ndarray) -> Any:
        """Return the device array of a host array."""
        return self._backend.from_host(array)

    def advance(
        self,
        frame: int,
        features: Mapping[str, Any],
        asks: Mapping[int, Ask],
        objects: Sequence[int],
        reverse: bool,
        span: int,
    ) -> dict[int, Answer]:
        """Answer for objects on a frame, and remember it.

        Args:
            frame: its index.
            features: device arrays of the image encoder, by port name.
            asks: what is said of objects; of the others nothing is.
            objects: those to answer for.
            reverse: whether tracking goes back in time.
            span: as in MemoryBank.recall.
        """
        groups: dict[tuple[Any, ...], list[int]] = {}
        for obj in objects:
            ask = asks.get(obj, UNPROMPTED)
            refines = ask.earlier is not None
            alike = ask.mask is not None, len(ask.labels), refines, ask.remember
            groups.setdefault(alike, []).append(obj)
        answers: dict[int, Answer] = {}
        for (masked, _, _, remember), members in groups.items():
            said = [asks.get(obj, UNPROMPTED) for obj in members]
            if masked:
                arrays = self._from_masks(features, said)
            else:
                rows = [self.objects.index(obj) for obj in members] if remember else None
                arrays = self._decode(
                    features,
                    said,
                    self._condition(features, rows, len(members), frame, reverse, span),
                )
            answers.update(zip(members, self._split(arrays, said), strict=True))
        for obj, answer in answers.items():
            row = self.objects.index(obj)
            self.bank.write(row, frame, answer.memory, answer.pointer, answer.conditioning)
        return {obj: answers[obj] for obj in objects}

    def _condition(
        self,
        features: Mapping[str, Any],
        rows: Sequence[int] | None,
        count: int,
        frame: int,
        reverse: bool,
        span: int,
    ) -> Any:
        """Return the frame as each object sees it: with its memories, or without any."""
        image = features["image"]
        if rows is None:
            alone = self._backend.empty((count, *image.shape[1:]))
            alone[...] = image
            return alone
        recall = self.bank.recall(rows, frame, reverse, span)
        return self._run("memory_attention", {"image": image, **vars(recall)})["conditioned"]

    def _decode(
        self, features: Mapping[str, Any], said: Sequence[Ask], conditioned: Any
    ) -> dict[str, Any]:
        """Return the arrays of objects that are asked for by points, or not at all."""
        give = self._backend.from_host
        arrays = {
            **features,
            "conditioned": conditioned,
            "points": give(np.stack([ask.points for ask in said])),
            "labels": give(np.stack([ask.labels for ask in said])),
            "multimask": give(np.array([self._multimask(ask) for ask in said], np.int32)),
        }
        earlier = [ask.earlier for ask in said if ask.earlier is not None]
        if earlier:
            filled = self._fill(np.stack(earlier))
            arrays["masks"] = give(filled[:, None])
        decoded = self._run("track_refiner" if earlier else "track_decoder", arrays)
        return self._remember(features, said, decoded)

    def _multimask(self, ask: Ask) -> int:
        """Return what the decoder is told of the choice among its masks."""
        if ask.ambiguous:
            return 1
        return 0 if self.options.dynamic_multimask else -1

    def _from_masks(self, features: Mapping[str, Any], said: Sequence[Ask]) -> dict[str, Any]:
        """Return the arrays of objects whose masks are given."""
        masks = np.stack([ask.mask for ask in said if ask.mask is not None])[:, None]
        made = self._run("mask_prompter", {**features, "masks": self._backend.from_host(masks)})
        sure = self._backend.from_host(np.ones((len(said), 1), np.float32))
        # Not of the mask as given: what low resolution leaves of it is what counts.
        return self._remember(features, said, {**made, "iou": sure})

    def _remember(
        self, features: Mapping[str, Any], said: Sequence[Ask], decoded: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return what was decoded, with the memories that it leaves."""
        prompted = np.array([ask.prompted for ask in said])
        logits = decoded["logits"]
        if self.options.fill_holes > 0 and prompted.any():
            # What is tracked is remembered as it was decoded, what is prompted as it is shown.
            shown = self._backend.to_host(logits).copy()
            shown[prompted, 0] = self._fill(shown[prompted, 0])
            logits = self._backend.from_host(shown)
        hard = (prompted & self.options.binarize_prompts).astype(np.int32)
        binary = self._backend.from_host(hard)
        arrays = {**features, **decoded, "logits": logits, "binary": binary}
        return {**decoded, **self._run("memory_encoder", arrays)}

    def _fill(self, logits: np.ndarray) -> np.ndarray:
        """Return logits (N, h, w) on the host with their small holes filled."""
        return fill_small_holes(logits, self.options.fill_holes, self.options.threads)

    def _run(self, name: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Run a stage on arrays by port name, and return its outputs so."""
        stage = self._stages[name]
        made = self._programs[name](*(arrays[port.name] for port in stage.inputs))
        return {port.name: array for port, array in zip(stage.outputs, made, strict=True)}

    def _split(self, arrays: Mapping[str, Any], said: Sequence[Ask]) -> list[Answer]:
        """Return the answer of each object of a batch."""
        host = {n: self._backend.to_host(arrays[n]) for n in ("logits", "iou", "object_score")}
        return [
            Answer(
                logits=host["logits"][index, 0],
                score=float(host["iou"][index, 0]),
                object_score=float(host["object_score"][index, 0]),
                memory=arrays["memory"][index],
                pointer=arrays["pointer"][index],
                conditioning=ask.conditioning,
            )
            for index, ask in enumerate(said)
        ]


def can_keep_single(decoder: Stage) -> bool:
    """Tell whether a track_decoder takes -1 for multimask; those of older bundles do not."""
    (multimask,) = (port for port in decoder.inputs if port.name == "multimask")
    return multimask.bounds is not None and multimask.bounds[0] < 0

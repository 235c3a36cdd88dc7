"""A bundle of SAM 2 in int8: its encoder where that is faster, as far as masks allow."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from vkrt import catalog
from vkrt.backends.onnx import OnnxBackend
from vkrt.engines.sam2_image import Segmenter
from vkrt.errors import BackendError
from vkrt.export.files import move
from vkrt.export.int8.calibration import SCENES, photo_inputs, scene_inputs
from vkrt.export.int8.choice import Choice, choose, give_back
from vkrt.export.int8.cpu import needs_reduced_range
from vkrt.export.int8.gate import Gate, Verdict
from vkrt.export.int8.products import Shape
from vkrt.export.int8.quantize import FP32
from vkrt.export.int8.rounding import in_bf16
from vkrt.export.int8.speed import Seconds, time_forms
from vkrt.export.int8.trials import Trials
from vkrt.manifest import Header
from vkrt.options import Options
from vkrt.stage import Stage
from vkrt.steps import CutFile

__all__ = ["ENCODER", "Int8", "quantize_encoder"]

# The one stage whose products are quantized: those of the others take milliseconds, and masks come
# straight from them.
ENCODER = "image_encoder"
# How often the masks are asked for before an export is given up.
ROUNDS = 5
# How much of the squared damage a round keeps at most, so that rounds come to an end.
MOST_KEPT = 0.8


@dataclass(frozen=True)
class Int8:
    """Say how to quantize.

    Attributes:
        photos: to calibrate an image encoder on, besides procedural scenes.
        allow_loss: take what speed alone chooses, whatever it does to masks or latents.
        measure: gives the seconds of a product's forms, as time_forms does; None is that.
    """

    photos: Sequence[Path] = ()
    allow_loss: bool = False
    measure: Callable[[Shape, bool], Seconds] | None = None


def quantize_encoder(
    stages: Mapping[str, Stage], drafts: Mapping[str, Path], header: Header, how: Int8
) -> tuple[dict[str, Stage], dict[str, Any]]:
    """Replace the image encoder's files; return the stages that changed, and the record of it.

    All stages that are cut change: their attentions, to memories above all, become bf16.

    Args:
        stages: by name, whose modules are paths of fp32 files, or CutFiles.
        drafts: of the encoder, as stage_to_onnx writes one; it is deleted.
        header: what the bundle is to be.
        how: where to calibrate, and whether masks may be lost.

    Raises:
        BackendError: no product is faster in int8 here, or what is faster loses masks.
    """
    if ENCODER not in stages:
        raise BackendError(f"{header.model} has no {ENCODER}, the one stage that int8 is for")
    reduced, side, draft = needs_reduced_range(), header.image_size, drafts[ENCODER]
    rounded = {
        name: in_bf16(stage)
        for name, stage in stages.items()
        if name != ENCODER and isinstance(stage.module, CutFile)
    }
    with tempfile.TemporaryDirectory(dir=draft.parent) as folder:
        pictures = chain(scene_inputs(SCENES, side), photo_inputs(how.photos, side))
        trials = Trials(stages[ENCODER], draft, Path(folder), pictures, side, reduced)
        measure = how.measure or time_forms
        choices = choose(trials.shapes, lambda shape: measure(shape, reduced))
        if all(choice.form == FP32 for choice in choices.values()):
            raise BackendError(
                f"int8 is not faster than fp32 for any of the {len(choices)} products of "
                f"{header.model} on this CPU: export it with --precision fp32 or fp16"
            )
        with open_model(stages, header) as reference:
            gate = Gate(reference)
        choices, verdict, made = settle(
            trials, choices, gate, {**stages, **rounded}, header, how.allow_loss
        )
        encoder = move(made, draft.parent)
    draft.unlink(missing_ok=True)
    return {**rounded, ENCODER: encoder}, {
        "weight_bits": 7 if reduced else 8,
        "calibration": {"scenes": len(SCENES), "photos": len(how.photos)},
        "masks": {**asdict(verdict), "loss_allowed": how.allow_loss},
        "products": [record(name, choice) for name, choice in choices.items()],
    }


def settle(
    trials: Trials,
    choices: dict[str, Choice],
    gate: Gate,
    stages: Mapping[str, Stage],
    header: Header,
    allow_loss: bool,
) -> tuple[dict[str, Choice], Verdict, Stage]:
    """Return choices that keep the masks, what they do to masks, and the encoder.

    Args:
        trials: write the encoder.
        choices: to begin with.
        gate: judges masks.
        stages: all; those besides the encoder as they are going to be.
        header: what the bundle is to be.
        allow_loss: take the first choices, whatever they do.

    Raises:
        BackendError: no choices do.
    """
    for attempt in range(1, ROUNDS + 1):
        stage = in_bf16(trials.write({name: choice.form for name, choice in choices.items()}))
        with open_model({**stages, ENCODER: stage}, header) as sam:
            verdict = gate.judge(sam)
        if verdict.passed or allow_loss:
            return choices, verdict, stage
        if attempt < ROUNDS:
            choices = give_back(choices, trials.damage, share_to_keep(verdict))
        if all(choice.form == FP32 for choice in choices.values()):
            break
    raise BackendError(
        f"int8 loses too much of {header.model}: {verdict}, {verdict.wanted} is wanted: the bundle "
        "was not written; take fp32 or fp16, or vkrt export with --calibration FOLDER (of photos "
        "such as it will see) or --allow-loss"
    )


def share_to_keep(verdict: Verdict) -> float:
    """Return which share of the squared damage may stay for the masks to pass.

    Loss grows with damage at least, with its square at most; taken for the latter, a round rather
    gives too little back than too much, and the next one sees to the rest.
    """
    return min((1 - verdict.wanted) / (1 - verdict.worst), MOST_KEPT)


def open_model(stages: Mapping[str, Stage], header: Header) -> Segmenter:
    """Return a model that runs files of a bundle that is not finished."""
    return Segmenter(
        name=header.model,
        config=catalog.find(header.model, header.image_size).config,
        stages=stages,
        backend=OnnxBackend(Options(device="cpu")),
        fingerprint=header.fingerprint,
        embedding_cache_bytes=0,
    )


def record(name: str, choice: Choice) -> dict[str, Any]:
    """Return what a manifest says of a product."""
    milliseconds = {form: round(1e3 * s, 3) for form, s in choice.seconds.items()}
    return {
        "name": name,
        **asdict(choice.shape),
        "form": choice.form,
        "reason": choice.reason,
        "ms": milliseconds,
    }

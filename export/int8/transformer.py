"""The transformer of a bundle in int8: where that is faster, as far as its velocities allow."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from vkrt.backends.onnx import OnnxBackend
from vkrt.engines.budget import Budget
from vkrt.engines.sd35 import Generator
from vkrt.errors import BackendError
from vkrt.export.files import move
from vkrt.export.int8.choice import LEAST_GAIN, Choice, choose, give_back
from vkrt.export.int8.cpu import needs_reduced_range
from vkrt.export.int8.exchange import Exchange
from vkrt.export.int8.noise import Noise, observe_noise
from vkrt.export.int8.products import Shape, find_products
from vkrt.export.int8.quantize import FP32, Form
from vkrt.export.int8.recipe import MOST_KEPT, Int8, record
from vkrt.export.int8.rounding import in_bf16
from vkrt.export.int8.speed import Seconds, time_forms
from vkrt.export.int8.token_forms import BLOCK, BLOCKS, ROWS, rewrite_products
from vkrt.export.int8.velocity import Gate, Verdict
from vkrt.export.to_onnx import write_model
from vkrt.manifest import Header
from vkrt.media.text import Tokenizers
from vkrt.models.sd35.config import ControlNetConfig, Sd35Config
from vkrt.models.sd35.record import from_record
from vkrt.options import Options
from vkrt.stage import Stage

__all__ = ["TRANSFORMER", "quantize_transformer", "time_token_forms"]

# The stages that every step runs; the others run once a picture.
TRANSFORMER = ("mmdit", "mmdit_controlled", "controlnet")
LED = frozenset({"mmdit_controlled", "controlnet", "controlnet_conditioning", "vae_encoder"})
# The first and the last linear layers lie outside of the blocks; they stay as they are.
IN_BLOCK = re.compile(r"(?:.*\.)?(?:joint|transformer)_blocks\.\d+\..*")
# Tokens of a product that is timed: those of a picture of 512 pixels a side.
TOKENS = 1024
# How often pictures are sampled before an export is given up.
ROUNDS = 4
FINER: Mapping[Form, Form] = {ROWS: BLOCKS}


def quantize_transformer(
    stages: Mapping[str, Stage],
    drafts: Mapping[str, Path],
    header: Header,
    files: Mapping[str, Path],
    how: Int8,
) -> tuple[dict[str, Stage], dict[str, Any]]:
    """Replace the transformer's files; return its stages, and the record for the manifest.

    Args:
        stages: all of the bundle by name, whose modules are paths of fp32 files, or CutFiles.
        drafts: of the stages in TRANSFORMER that are there, as stage_to_onnx writes them; they
            are deleted.
        header: what the bundle is to be.
        files: the tokenizers', by their names in the bundle.
        how: whether loss is allowed, and what times products; it has no photos.

    Raises:
        BackendError: int8 is not faster here, or errs by too much.
        GenerationError: int8 gives NaN.
    """
    controlled = stages.keys() >= LED
    names = [name for name in TRANSFORMER if name == "mmdit" or controlled]
    reduced = needs_reduced_range()
    shapes = {key: shape for name in names for key, shape in shapes_in(name, drafts[name])}
    measure = how.measure or time_token_forms
    choices = choose(shapes, lambda shape: measure(shape, reduced), (ROWS, BLOCKS))
    if all(choice.form == FP32 for choice in choices.values()):
        raise BackendError(
            f"int8 is not faster than fp32 for any of the {len(choices)} products of "
            f"{header.model} on this CPU: export it with --precision fp32 or fp16"
        )
    folder = drafts["mmdit"].parent
    wanted = {name: stages[name] for name in names}
    with (
        tempfile.TemporaryDirectory(dir=folder) as place,
        opened(stages, header, files, names) as (engine, exchange),
    ):
        gate = Gate(engine, exchange, wanted, controlled)
        trials = Trials(wanted, drafts, gate, Path(place), reduced)
        choices, verdict = settle(trials, choices, header, how.allow_loss)
        refuse_slow(verdict, header)
        made = {name: move(stage, folder) for name, stage in trials.written.items()}
    for draft in drafts.values():
        draft.unlink(missing_ok=True)
    return made, {
        "weight_bits": 7 if reduced else 8,
        "latents": {**asdict(verdict), "loss_allowed": how.allow_loss},
        "products": [record(key, choice) for key, choice in choices.items()],
    }


def shapes_in(stage: str, draft: Path) -> Iterator[tuple[str, Shape]]:
    """Give the products of a stage that int8 is for: "stage/name", and the shape."""
    for product in find_products(ir.load(draft).graph):
        if IN_BLOCK.fullmatch(product.name):
            yield f"{stage}/{product.name}", Shape(TOKENS, *product.weight.shape)


def time_token_forms(shape: Shape, reduced: bool) -> Seconds:
    """Return the seconds of a product in each form that it can have on this CPU.

    Without wide sums of bytes BLOCKS would need 7 bits too, which its operator does not have.
    """
    able = not reduced and shape.inner % BLOCK == 0
    forms = (FP32, ROWS, BLOCKS) if able else (FP32, ROWS)
    return time_forms(shape, reduced, forms=forms, rewrite=rewrite_products)


@contextmanager
def opened(
    stages: Mapping[str, Stage], header: Header, files: Mapping[str, Path], names: list[str]
) -> Iterator[tuple[Generator, Exchange]]:
    """Give an engine on files of a bundle that is not finished, and what exchanges some."""
    settings = header.settings
    control = settings["controlnet"]
    budget = Budget(
        weights=settings["weights"],
        control=None if control is None else from_record(ControlNetConfig, control),
    )
    exchange = Exchange(OnnxBackend(Options(device="cpu")), names)
    with Generator(
        header.model,
        from_record(Sd35Config, settings["config"]),
        dict(stages),
        lambda name: exchange,
        Tokenizers({part: files[name] for part, name in settings["tokenizers"].items()}),
        budget=budget,
        control_kind=settings["control_kind"],
    ) as engine:
        try:
            yield engine, exchange
        finally:
            exchange.close()


class Trials:
    """Write stages with their products in other forms, and judge them.

    Args:
        stages: in fp32.
        drafts: of them.
        gate: judges, and knows what they were called with.
        folder: where to write.
        reduced: as in quantize.

    Attributes:
        written: the stages as they were written last.
    """

    def __init__(
        self,
        stages: Mapping[str, Stage],
        drafts: Mapping[str, Path],
        gate: Gate,
        folder: Path,
        reduced: bool,
    ) -> None:
        self._stages, self._drafts, self._gate = stages, drafts, gate
        self._folder, self._reduced = folder, reduced
        self._noise: dict[str, Noise] = {}
        self.written: dict[str, Stage] = {}

    def judge(self, choices: Mapping[str, Choice]) -> Verdict:
        """Return how far the stages are from fp32 with these choices."""
        for name, stage in self._stages.items():
            forms = {key.removeprefix(f"{name}/"): c.form for key, c in choices.items()}
            model = ir.load(self._drafts[name])
            rewrite_products(model, forms, self._reduced)
            path = self._folder / f"{name}.onnx"
            made = write_model(model, stage, path, may_cut=True)
            self.written[name] = in_bf16(replace(stage, module=made))
        return self._gate.judge(self.written)

    def damage(self, key: str, form: Form) -> float:
        """Return the relative error that a form adds to what a product makes."""
        stage, _, name = key.partition("/")
        if stage not in self._noise:
            calls = self._gate.calls[stage]
            # Noise and pictures alike: the first step and the last one.
            ends = [call.given for call in (calls[0], calls[-1])]
            names = [p.partition("/")[2] for p, _ in shapes_in(stage, self._drafts[stage])]
            draft = self._drafts[stage]
            self._noise[stage] = observe_noise(self._stages[stage], draft, names, ends)
        return float(self._noise[stage][name][form] ** 0.5)


def settle(
    trials: Trials, choices: dict[str, Choice], header: Header, allow_loss: bool
) -> tuple[dict[str, Choice], Verdict]:
    """Return choices that keep near to fp32, those that were written last, and how near.

    Raises:
        BackendError: no choices do.
    """
    for attempt in range(1, ROUNDS + 1):
        verdict = trials.judge(choices)
        if verdict.passed or allow_loss:
            return choices, verdict
        if attempt < ROUNDS:
            keep = share_to_keep(verdict)
            choices = give_back(choices, trials.damage, keep, FINER)
        if all(choice.form == FP32 for choice in choices.values()):
            break
    raise BackendError(
        f"int8 loses too much of {header.model}: {verdict}, at most {verdict.most_error} and at "
        f"least {verdict.least_psnr} dB are wanted: the bundle was not written; take fp32 or fp16, "
        "or --allow-loss"
    )


def share_to_keep(verdict: Verdict) -> float:
    """Return which share of the noise may stay: it grows with the square of an error."""
    of_error = (verdict.most_error / verdict.error) ** 2
    of_psnr = 10 ** ((verdict.psnr - verdict.least_psnr) / 10)
    return float(min(of_error, of_psnr, MOST_KEPT))


def refuse_slow(verdict: Verdict, header: Header) -> None:
    """Refuse what gains nothing as a whole.

    Raises:
        BackendError: a step takes as long as in fp32.
    """
    whole, small = verdict.seconds["fp32"], verdict.seconds["int8"]
    if small * LEAST_GAIN > whole:
        raise BackendError(
            f"int8 is not faster than fp32: a step of {header.model} takes {small:.3g} s against "
            f"{whole:.3g} s on this CPU: export it with --precision fp32 or fp16"
        )

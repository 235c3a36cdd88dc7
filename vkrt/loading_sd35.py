"""From the weights of Stable Diffusion 3.5, or a bundle, to an engine that makes pictures."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vkrt import backends
from vkrt.backends.policy import Policy, StageBackends, parse_policy
from vkrt.engines.budget import ALWAYS, Budget
from vkrt.engines.sd35 import Generator
from vkrt.errors import BackendError, CheckpointError
from vkrt.fitness import check_runs, warn_of_overflow
from vkrt.manifest import GET_AGAIN, SD35
from vkrt.meant import Meant, Paths
from vkrt.media.text import Tokenizers
from vkrt.models.sd35.config import ControlNetConfig, Sd35Config
from vkrt.models.sd35.record import from_record
from vkrt.options import Options
from vkrt.weights.family import CUSTOM

if TYPE_CHECKING:
    from vkrt.bundle import Bundle
    from vkrt.weights.sd35 import Sd35Weights
    from vkrt.weights.sd35_stages import LazyStages

__all__ = ["bundled_generator", "load_generator"]


def load_generator(
    meant: Meant,
    options: Options,
    precision: str | Mapping[str, str] = "auto",
    encoders: Mapping[str, str | os.PathLike[str] | None] | None = None,
    tokenizers: Paths | None = None,
    control_model: str | os.PathLike[str] | None = None,
) -> Generator:
    """Return the engine of a model; each part's weights are read when they are needed.

    Args:
        meant: which; without a name it is recognised by its shapes.
        options: backend, device, threads, memory limit, cache.
        precision: of all stages or of some, as vkrt.backends.policy.parse_policy takes it.
        encoders: files of single components, by "clip_l", "clip_g", "t5" and "vae"; None leaves
            one out.
        tokenizers: their folder; None looks in that of the checkpoint.
        control_model: a ControlNet's file or folder.

    Raises:
        CheckpointError, DownloadError, BackendError: as in vkrt.load.
    """
    bundle = meant.bundle()
    if bundle is not None:
        if encoders or control_model is not None:
            raise CheckpointError(
                f"{bundle.folder} is a bundle, which holds all its weights: export it again with "
                "these"
            )
        check_pictures(bundle, meant.name, options, precision)
        return bundled_generator(bundle, options, tokenizers)
    if options.backend == "auto":
        # ONNX Runtime runs bundles alone, and a model of this size is not exported unasked.
        backends.choose("eager", options.device)
        options = replace(options, backend="eager")
    if backends.runs_bundles(options.backend):
        raise BackendError(
            f"{options.backend} runs bundles: export the model first with `vkrt export`, or take "
            'backend="eager"'
        )
    backends.choose(options.backend, options.device)
    # Behind `choose`, so that a missing torch is told in one line and not as an ImportError.
    from vkrt.models.sd35.stages import PARTS
    from vkrt.weights.lora_stack import LoraStack
    from vkrt.weights.sd35 import open_sd35
    from vkrt.weights.sd35_stages import LazyStages

    weights = open_sd35(
        meant.source,
        meant.name,
        cache=options.cache,
        encoders=encoders,
        controlnet=None if control_model is None else Path(control_model),
    )
    backends_of = StageBackends(options, parse_policy(precision, tuple(PARTS)))
    stages = LazyStages(weights, backends_of.precisions(PARTS))
    return Generator(
        weights.name,
        weights.config,
        stages,
        backends_of,
        find_tokenizers(weights, tokenizers),
        budget=budget_of(weights, stages, backends_of, options.memory_limit),
        control_kind=weights.control or "",
        adapters=LoraStack(stages),
    )


def find_tokenizers(weights: Sd35Weights, given: Paths | None) -> Tokenizers:
    """Return the tokenizers that are given, or those beside the weights."""
    if given is not None:
        return Tokenizers(given)
    try:
        return Tokenizers(weights.tokenizer_folders())
    except CheckpointError:
        return Tokenizers({})


def budget_of(
    weights: Sd35Weights, stages: LazyStages, backends_of: StageBackends, limit: int | None
) -> Budget:
    """Return what the weights of the stages take, and what everything may take."""
    return Budget(
        weights={name: stages.bytes(name) for name in stages},
        precisions={name: backends_of.precision(name) for name in stages},
        limit=limit,
        # On a CPU the host's memory is the device's: there is nowhere to stream from.
        streams=backends_of.device != "cpu",
        control=weights.controlnet,
    )


def check_pictures(
    bundle: Bundle, name: str | None, options: Options, precision: str | Mapping[str, str]
) -> None:
    """Refuse a bundle that does not make the pictures that the caller asked for.

    Raises:
        CheckpointError: it is of another family or model.
        BackendError: it can't run on that backend or at that precision.
    """
    held, folder = bundle.header, bundle.folder
    if held.family != SD35:
        raise CheckpointError(f"{folder} holds {held.model}, which makes no pictures")
    if name not in (None, CUSTOM, held.model):
        raise CheckpointError(f"{folder} holds {held.model}, but {name} was asked for")
    check_runs(bundle, options.backend, precision)


def bundled_generator(
    bundle: Bundle, options: Options, tokenizers: Paths | None = None
) -> Generator:
    """Return the engine of a bundle; each stage is opened when it is needed, without torch.

    Args:
        bundle: of this family.
        options: backend, device, threads, memory limit; precision is that of the bundle.
        tokenizers: their folder; None takes those of the bundle.

    Raises:
        CheckpointError: it lacks a stage, or its settings are damaged.
        BackendError: no backend can run it here.
    """
    for name in (*ALWAYS, "mmdit"):
        bundle.stages[name]
    warn_of_overflow(bundle)
    settings = bundle.header.settings
    try:
        config = from_record(Sd35Config, settings["config"])
        control = settings["controlnet"]
        budget = Budget(
            weights={name: int(settings["weights"][name]) for name in bundle.stages},
            limit=options.memory_limit,
            control=None if control is None else from_record(ControlNetConfig, control),
        )
        files = {part: bundle.folder / bundled(bundle, n) for part, n in named(settings).items()}
        kind = str(settings["control_kind"])
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(
            f"{bundle.folder} has damaged settings ({what:.200}): {GET_AGAIN}"
        ) from None
    runner = replace(options, backend=backends.bundle_runner(options.backend))
    return Generator(
        bundle.header.model,
        config,
        # Of stages that are not there the engine says best what lacks.
        dict(bundle.stages),
        StageBackends(runner, Policy()),
        Tokenizers(files if tokenizers is None else tokenizers),
        budget=budget,
        control_kind=kind,
    )


def named(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the name of each tokenizer's file."""
    return dict(settings["tokenizers"])


def bundled(bundle: Bundle, name: str) -> str:
    """Return the name of a file whose digest was verified.

    Raises:
        ValueError: it is not one.
    """
    if name not in bundle.bytes:
        raise ValueError(f"{name!r:.80} is no file of it")
    return name

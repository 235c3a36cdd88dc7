"""From the weights of Stable Diffusion 3.5 to an engine that makes pictures."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vkrt import backends
from vkrt.backends.policy import StageBackends, parse_policy
from vkrt.engines.budget import Budget
from vkrt.engines.sd35 import Generator
from vkrt.errors import BackendError, CheckpointError
from vkrt.media.text import Tokenizers
from vkrt.options import Options

if TYPE_CHECKING:
    from vkrt.weights.sd35 import Sd35Weights
    from vkrt.weights.sd35_stages import LazyStages

__all__ = ["Paths", "load_generator"]

Paths = Mapping[str, str | os.PathLike[str]] | str | os.PathLike[str]


def load_generator(
    name: str | None,
    checkpoint: Path | None,
    options: Options,
    precision: str | Mapping[str, str] = "auto",
    encoders: Mapping[str, str | os.PathLike[str]] | None = None,
    tokenizers: Paths | None = None,
    control_model: str | os.PathLike[str] | None = None,
) -> Generator:
    """Return the engine of a checkpoint; each part's weights are read when they are needed.

    Args:
        name: catalog name; None recognises the model by its shapes.
        checkpoint: file or folder; None takes the one that was downloaded.
        options: backend, device, threads, memory limit, cache.
        precision: of all stages or of some, as vkrt.backends.policy.parse_policy takes it.
        encoders: files of single components, by "clip_l", "clip_g", "t5" and "vae".
        tokenizers: their folder; None looks in that of the checkpoint.
        control_model: a ControlNet's file or folder.

    Raises:
        CheckpointError, DownloadError, BackendError: as in vkrt.load.
    """
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
        checkpoint,
        name,
        cache=options.cache,
        encoders={part: Path(path) for part, path in (encoders or {}).items()},
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

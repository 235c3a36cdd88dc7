"""What is asked of a generation, checked before anything runs."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vkrt.arguments import is_whole, number, shown, text, whole
from vkrt.engines.guidance import LARGEST_SCALE, Guidance
from vkrt.engines.noise import LARGEST_SEED, NoiseStream
from vkrt.engines.schedule import (
    EULER,
    check_profile,
    check_sampler,
    check_shift,
    check_steps,
    check_strength,
    first_step,
    make_schedule,
)
from vkrt.errors import GenerationError, PromptError
from vkrt.models.sd35.config import Sd35Config

__all__ = ["CONTROLLED", "Request", "check_size", "largest_side", "read_request", "smallest_side"]

# Seeds that nobody chose: short enough to be typed again.
RANDOM_SEEDS = 2**32
LONGEST_T5 = 512
# Of one call: their noise and latents are in memory together.
MAX_PICTURES = 1000
# Pixels along a side that a message about a size still speaks of.
LARGEST_SIDE = 2**20


@dataclass(frozen=True)
class Defaults:
    """State what is taken where the caller does not say."""

    steps: int
    guidance: float
    sampler: str


# What the authors of the ControlNets sample with.
CONTROLLED = Defaults(60, 3.5, EULER)


@dataclass(frozen=True)
class Request:
    """Hold what a generation is to make; every number is possible.

    Attributes:
        prompts, negatives: of each picture.
        width, height: in pixels.
        steps: of the whole schedule.
        guidance: of each step.
        seed: of the first picture; each next one has the next seed.
        strength: share of the steps that are taken where a picture is given.
        sampler, shift, profile: of the steps.
        t5_length: tokens of T5; None leaves it to the profile and the prompts.
        control_scale: what a ControlNet's residuals are multiplied with.
    """

    prompts: tuple[str, ...]
    negatives: tuple[str, ...]
    width: int
    height: int
    steps: int
    guidance: Guidance
    seed: int
    strength: float
    sampler: str
    shift: float
    profile: str
    t5_length: int | None
    control_scale: float

    @property
    def texts(self) -> tuple[str, ...]:
        """Return every text that is read, each once."""
        negatives = self.negatives if self.guidance.on else ()
        return tuple(dict.fromkeys((*negatives, *self.prompts)))

    def parameters(self, index: int) -> dict[str, Any]:
        """Return what makes picture `index` again by itself, as generate takes it."""
        guidance = self.guidance
        return {
            "prompt": self.prompts[index],
            "negative": self.negatives[index],
            "width": self.width,
            "height": self.height,
            "steps": self.steps,
            "guidance": guidance.scale,
            "seed": self.seed + index,
            "sampler": self.sampler,
            "shift": self.shift,
            "profile": self.profile,
            "t5_length": self.t5_length,
            "skip_layers": list(guidance.skip_layers),
            "skip_scale": guidance.skip_scale,
        }


def read_request(
    config: Sd35Config,
    prompt: str | Sequence[str],
    negative: str | Sequence[str] = "",
    width: int = 1024,
    height: int = 1024,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int | None = None,
    count: int = 1,
    strength: float = 0.6,
    sampler: str | None = None,
    shift: float = 3.0,
    profile: str = "reference",
    t5_length: int | None = None,
    skip_layers: Sequence[int] | None = None,
    skip_scale: float | None = None,
    control_scale: float = 1.0,
    controlled: bool = False,
) -> Request:
    """Return the request, with the model's own numbers where the caller gives none.

    Args:
        config: of the model.
        controlled: whether a ControlNet is to run; the others are as in Generator.generate.

    Raises:
        PromptError: a prompt is no text, or prompts and negative prompts do not match.
        GenerationError: a number is not possible.
    """
    own = CONTROLLED if controlled else Defaults(config.steps, config.guidance, config.sampler)
    width, height = check_size(config, width, height)
    prompts, negatives = read_texts(prompt, negative, count)
    check_profile(profile)
    request = Request(
        prompts=prompts,
        negatives=negatives,
        width=width,
        height=height,
        steps=own.steps if steps is None else check_steps(steps),
        guidance=Guidance(
            own.guidance if guidance is None else read_scale("guidance", guidance),
            read_layers(config, skip_layers),
            config.skip_scale if skip_scale is None else read_scale("skip_scale", skip_scale),
            config.skip_from,
            config.skip_until,
            profile,
        ),
        seed=read_seed(seed, len(prompts)),
        strength=check_strength(strength),
        sampler=own.sampler if sampler is None else check_sampler(sampler),
        shift=check_shift(shift),
        profile=profile,
        t5_length=read_length(t5_length),
        control_scale=read_scale("control_scale", control_scale, -LARGEST_SCALE),
    )
    make_schedule(request.steps, request.shift, profile, request.sampler)
    first_step(request.steps, request.strength, profile)
    return request


def largest_side(config: Sd35Config) -> int:
    """Return the pixels along the largest side that there are stored positions for."""
    return config.mmdit.pos_embed_max_size * smallest_side(config)


def smallest_side(config: Sd35Config) -> int:
    """Return the pixels along a patch, of which every side is a multiple."""
    return config.mmdit.patch * config.vae.stride


def check_size(config: Sd35Config, width: Any, height: Any) -> tuple[int, int]:
    """Return width and height, or refuse a size that the model has no tokens or positions for.

    Raises:
        GenerationError: a side is not a multiple of 16, or too large.
    """
    unit, largest = smallest_side(config), largest_side(config)
    sides = (("width", width), ("height", height))
    # Beyond what there are positions for, the error below says why.
    width, height = (
        whole(name, side, unit, max(largest, LARGEST_SIDE), kind=GenerationError)
        for name, side in sides
    )
    if width % unit or height % unit:
        near = "x".join(str(max(unit, round(side / unit) * unit)) for side in (width, height))
        raise GenerationError(
            f"width and height must be multiples of {unit}, not {width}x{height}: take {near}"
        )
    if max(width, height) > largest:
        raise GenerationError(
            f"{width}x{height} is too large: this model has positions for sides of at most "
            f"{largest} pixels"
        )
    return width, height


def read_texts(
    prompt: str | Sequence[str], negative: str | Sequence[str], count: Any
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return prompt and negative prompt of each picture; those of one prompt come together.

    Raises:
        PromptError: they are no texts, or there are not as many of both.
        GenerationError: the count is not possible.
    """
    count = whole("count", count, 1, MAX_PICTURES, kind=GenerationError)
    prompts = list_texts("prompt", prompt)
    negatives = list_texts("negative", negative)
    if isinstance(negative, str):
        negatives *= len(prompts)
    if not prompts:
        raise PromptError('there is no prompt; "" is an empty one')
    if len(negatives) != len(prompts):
        raise PromptError(
            f"there are {len(prompts)} prompts and {len(negatives)} negative prompts: give one "
            "negative prompt for all, or one for each"
        )
    if len(prompts) * count > MAX_PICTURES:
        raise GenerationError(
            f"{len(prompts)} prompts of {count} pictures each are more than {MAX_PICTURES}, the "
            "most of one call: make several calls"
        )
    repeated = [[each for each in texts for _ in range(count)] for texts in (prompts, negatives)]
    return tuple(repeated[0]), tuple(repeated[1])


def list_texts(name: str, given: Any) -> list[str]:
    """Return a text, or several, as a list.

    Raises:
        PromptError: they are no texts.
    """
    texts = list(given) if isinstance(given, list | tuple) else [given]
    for index, each in enumerate(texts):
        one_of = f" {index + 1} of {len(texts)}" if len(texts) > 1 else ""
        if not isinstance(each, str):
            raise PromptError(f"{name}{one_of} must be text, or a list of texts, not {shown(each)}")
        text(name + one_of, each, kind=PromptError)
    return texts


def read_layers(config: Sd35Config, layers: Sequence[int] | None) -> tuple[int, ...]:
    """Return the blocks that skip-layer guidance leaves out.

    Raises:
        GenerationError: the model has no such block.
    """
    if layers is None:
        return config.skip_layers
    depth = config.mmdit.depth
    if isinstance(layers, str | bytes) or not hasattr(type(layers), "__len__"):
        raise GenerationError(f"skip_layers must be a list of blocks, not {shown(layers)}")
    if len(layers) > depth:
        raise GenerationError(
            f"skip_layers has {len(layers)} blocks, but this model has {depth}: name each once"
        )
    for layer in layers:
        if not is_whole(layer) or not 0 <= layer < depth:
            raise GenerationError(
                f"skip_layers must be of 0 to {depth - 1}, the blocks of this model, "
                f"not {shown(layer)}"
            )
    return tuple(int(layer) for layer in layers)


def read_seed(seed: Any, count: int) -> int:
    """Return the first seed, drawn where none is given.

    Raises:
        GenerationError: it, or that of the last picture, is none.
    """
    if seed is None:
        return secrets.randbelow(RANDOM_SEEDS)
    NoiseStream(seed)
    seed = int(seed)
    if seed + count - 1 > LARGEST_SEED:
        raise GenerationError(
            f"the last of {count} pictures would have seed {seed + count - 1}, above the largest, "
            f"{LARGEST_SEED}: take a smaller seed"
        )
    return seed


def read_length(length: Any) -> int | None:
    """Return the tokens of T5.

    Raises:
        GenerationError: there can't be so many.
    """
    if length is None:
        return None
    return whole("t5_length", length, 1, LONGEST_T5, kind=GenerationError)


def read_scale(name: str, scale: Any, lowest: float = 0) -> float:
    """Return a scale as float.

    Raises:
        GenerationError: it is not a finite number, below the lowest or beyond LARGEST_SCALE.
    """
    return number(name, scale, lowest, LARGEST_SCALE, kind=GenerationError)

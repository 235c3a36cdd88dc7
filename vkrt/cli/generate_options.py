"""The options of `vkrt generate`, and what their texts mean."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from vkrt.errors import GenerationError

__all__ = [
    "MAX_PICTURES",
    "T5",
    "Checkpoint",
    "ClipG",
    "ClipL",
    "Control",
    "ControlModel",
    "ControlScale",
    "Count",
    "Earlier",
    "GuidanceScale",
    "Loras",
    "Mask",
    "MemoryLimit",
    "ModelName",
    "Negative",
    "Out",
    "Precision",
    "Profile",
    "PromptText",
    "SamplerName",
    "Seed",
    "Shift",
    "Size",
    "SkipLayers",
    "SkipScale",
    "Start",
    "Steps",
    "Strength",
    "T5Length",
    "TokenizerFolder",
    "Vae",
    "parse_layers",
    "parse_loras",
    "parse_size",
]

SIZE = re.compile(r"(\d{1,5})[xX](\d{1,5})", re.ASCII)
# Pictures of one call, as vkrt.engines.request bounds them.
MAX_PICTURES = 1000
# Side of a patch of latent pixels, in pixels of the picture.
UNIT = 16

PromptText = Annotated[
    str | None, typer.Argument(metavar="PROMPT", help='What to make; "" is an empty prompt.')
]
ModelName = Annotated[
    str | None,
    typer.Option(help="A name that `vkrt models` lists, or a checkpoint.  [default: sd3.5-medium]"),
]
Checkpoint = Annotated[
    Path | None, typer.Option(help="Its weights: a .safetensors file or a diffusers folder.")
]
ClipL = Annotated[
    Path | None, typer.Option("--clip-l", help="Weights of CLIP-L, where the checkpoint has none.")
]
ClipG = Annotated[
    Path | None, typer.Option("--clip-g", help="Weights of CLIP-G, where the checkpoint has none.")
]
T5 = Annotated[
    Path | None, typer.Option("--t5", help="Weights of T5, where the checkpoint has none.")
]
Vae = Annotated[
    Path | None,
    typer.Option("--vae", help="Weights of the autoencoder, where the checkpoint has none."),
]
TokenizerFolder = Annotated[
    Path | None,
    typer.Option("--tokenizers", metavar="DIR", help="Tokenizers, for single-file checkpoints."),
]
Negative = Annotated[str | None, typer.Option(help="What guidance leads away from.")]
Size = Annotated[
    str | None,
    typer.Option(
        metavar="WIDTHxHEIGHT",
        help="In pixels, multiples of 16.  [default: 1024x1024, or that of --image]",
    ),
]
Steps = Annotated[int | None, typer.Option(min=1, help="Steps; the model's own if not given.")]
GuidanceScale = Annotated[
    float | None,
    typer.Option(
        "--guidance",
        help="How closely to follow the prompt; up to 1 there is no guidance and a step takes "
        "half the time.",
    ),
]
Seed = Annotated[int | None, typer.Option(min=0, help="Of the first picture; drawn if not given.")]
Count = Annotated[
    int,
    typer.Option(
        min=1,
        max=MAX_PICTURES,
        help="Pictures, of this seed and the next ones: OUT out.png gives out-1.png, ...",
    ),
]
Start = Annotated[Path | None, typer.Option("--image", help="A picture to change.")]
Strength = Annotated[
    float | None, typer.Option(help="How much of --image changes, up to 1.  [default: 0.6]")
]
Mask = Annotated[
    Path | None, typer.Option(help="Where --image changes: white on black, of its size.")
]
Control = Annotated[
    Path | None, typer.Option(help="The condition of a ControlNet, such as a picture of edges.")
]
ControlModel = Annotated[
    Path | None, typer.Option(help="Weights of the ControlNet that takes --control.")
]
ControlScale = Annotated[float | None, typer.Option(help="How strongly it leads.  [default: 1]")]
Loras = Annotated[
    list[str] | None,
    typer.Option("--lora", metavar="FILE:SCALE", help="A LoRA; its scale is 1 if left out."),
]
SamplerName = Annotated[
    str | None, typer.Option("--sampler", help="euler or dpmpp_2m; the model's own if not given.")
]
Shift = Annotated[
    float | None, typer.Option(help="Of the noise levels towards noise.  [default: 3]")
]
Profile = Annotated[
    str | None,
    typer.Option(help="Whose conventions count: reference or diffusers.  [default: reference]"),
]
T5Length = Annotated[
    int | None, typer.Option("--t5-length", min=1, help="Tokens of T5; the profile's if not given.")
]
SkipLayers = Annotated[
    str | None,
    typer.Option(metavar="N,N,...", help="Blocks that skip-layer guidance leaves out."),
]
SkipScale = Annotated[
    float | None, typer.Option(help="Scale of skip-layer guidance; 0 turns it off.")
]
Precision = Annotated[
    str | None,
    typer.Option(
        help="auto, fp32, bf16 or fp16, of every stage or by name: mmdit=bf16,vae_decoder=fp32.  "
        "[default: auto]"
    ),
]
MemoryLimit = Annotated[
    str | None,
    typer.Option(metavar="AMOUNT", help="What weights and work may take, such as 8GiB."),
]
Out = Annotated[
    Path | None,
    typer.Option(help="The picture, a .png.  [default: MODEL-SEED.png in the current folder]"),
]
Earlier = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="OLD.png",
        help="Make this picture of vkrt's again; options that are given count before its own.",
    ),
]


def parse_size(text: str | None) -> dict[str, int]:
    """Return width and height of a text such as "1024x768"; nothing where there is none.

    Raises:
        GenerationError: it is of another form, or a side is not a multiple of 16.
    """
    if text is None:
        return {}
    found = SIZE.fullmatch(text.strip())
    if found is None:
        raise GenerationError(
            f"--size wants WIDTHxHEIGHT in pixels, such as 1024x768, not {text!r:.40}"
        )
    width, height = (int(side) for side in found.groups())
    if width % UNIT or height % UNIT or not width or not height:
        near = "x".join(str(max(UNIT, round(side / UNIT) * UNIT)) for side in (width, height))
        raise GenerationError(
            f"--size {width}x{height} is not made of multiples of {UNIT}; take {near}"
        )
    return {"width": width, "height": height}


def parse_loras(texts: Sequence[str] | None) -> list[dict[str, Any]] | None:
    """Return file and scale of each FILE:SCALE; without a scale it is 1.

    Raises:
        GenerationError: a scale is not a finite number, or there is no file name.
    """
    return [parse_lora(text) for text in texts] if texts else None


def parse_lora(text: str) -> dict[str, Any]:
    """Return file and scale of FILE:SCALE; a colon that no number follows is of the path."""
    file, colon, scale = text.rpartition(":")
    try:
        value = float(scale)
    except ValueError:
        value = None
    if not colon or value is None:
        file, value = text, 1.0
    if not file or not math.isfinite(value):
        raise GenerationError(
            f"--lora wants FILE:SCALE, such as style.safetensors:0.8, not {text!r:.80}"
        )
    return {"file": file, "scale": value}


def parse_layers(text: str | None) -> list[int] | None:
    """Return the numbers of a text such as "7,8,9".

    Raises:
        GenerationError: it is made of anything else.
    """
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise GenerationError(
            f"--skip-layers wants numbers of blocks, such as 7,8,9, not {text!r:.40}"
        ) from None

"""Random weights of Stable Diffusion 3.5: `python -m benchmarks.random_sd35 FILE` writes a file.

Each tensor has the same values wherever it is drawn, up to its dtype: as a module's, or in a file.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Annotated
from zlib import crc32

import torch
import typer
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn

from vkrt.media.tokenizer_files import CLIP_END, CLIP_START, WORD_END
from vkrt.models.sd35.config import Sd35Config
from vkrt.models.sd35.known import KNOWN
from vkrt.weights.sd35 import DTYPES
from vkrt.weights.sd35_fit import PARTS_OF
from vkrt.weights.sd35_modules import build_part, shapes_of_part
from vkrt.weights.sd35_sources import LEFT_OUT, PREFIXES

__all__ = [
    "COMPONENTS",
    "NoRoomError",
    "draw",
    "file_shapes",
    "random_part",
    "write_checkpoint",
    "write_vocabulary",
]

# Of an all-in-one file that reads prompts by CLIP alone.
COMPONENTS = ("transformer", "clip_l", "clip_g", "vae")
STORED = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}
# Uniform values up to it have a standard deviation of 1.
WIDEST = 3**0.5
# Of biases, and of what norms multiply with around 1.
SPREAD = 0.2
# Is added to patches that have a standard deviation of 1.
POSITIONS = "pos_embed"

Shapes = Mapping[str, tuple[int, ...]]


class NoRoomError(Exception):
    """Say that a disk is too full."""


def draw(name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return values with which no activation grows or vanishes, none of them at a neutral value.

    Args:
        name: of the tensor in its part; other names give other values.
        shape: of more than one dimension for what multiplies and adds up. Of the others,
            "weight" is a norm's.
        dtype: what the float32 values are rounded to.
    """
    seeded = torch.Generator().manual_seed(crc32(name.encode()))
    spread = prod(shape[1:]) ** -0.5 if len(shape) > 1 else SPREAD
    if name == POSITIONS:
        spread = 1.0
    values = torch.empty(shape).uniform_(-WIDEST * spread, WIDEST * spread, generator=seeded)
    if len(shape) == 1 and name.endswith("weight"):
        values.add_(1.0)
    return values.to(dtype)


def random_part(part: str, config: Sd35Config) -> nn.Module:
    """Return the module of a part with random float32 weights, ready to run."""
    module = build_part(part, config)
    shapes = shapes_of_part(part, config)
    weights = {name: draw(name, shape) for name, shape in shapes.items()}
    module.load_state_dict(weights, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def file_shapes(config: Sd35Config) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of an all-in-one file by its name there, in order."""
    found = {}
    for component in COMPONENTS:
        prefix, left_out = PREFIXES[component][0], LEFT_OUT.get(component, ())
        for part in PARTS_OF[component]:
            for name, shape in shapes_of_part(part, config).items():
                if not name.startswith(tuple(left_out)):
                    found[prefix + name] = shape
    return dict(sorted(found.items()))


def part_name(name: str) -> str:
    """Return the name that a tensor of a file has in its part."""
    prefixes = (PREFIXES[component][0] for component in COMPONENTS)
    return name.removeprefix(next(prefix for prefix in prefixes if name.startswith(prefix)))


def write_checkpoint(path: Path, config: Sd35Config, precision: str = "bf16") -> None:
    """Write random weights as one official safetensors file, all components but T5.

    One tensor at a time is in memory. Until all is written, the file has another name.

    Raises:
        NoRoomError: the disk is too full.
    """
    shapes = file_shapes(config)
    header = header_of(shapes, precision)
    size = len(header) + sum(map(prod, shapes.values())) * DTYPES[precision].itemsize
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise NoRoomError(
            f"{path.parent} has {free / 1e9:.1f} GB free, and the weights take {size / 1e9:.1f}: "
            "name a folder on another disk"
        )
    unfinished = path.with_name(f"{path.name}.part")
    try:
        with unfinished.open("wb") as file:
            file.write(header)
            for name, shape in shapes.items():
                values = draw(part_name(name), shape, DTYPES[precision])
                file.write(values.view(torch.uint8).numpy().data)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def header_of(shapes: Shapes, precision: str) -> bytes:
    """Return the header of a safetensors file whose tensors follow one another."""
    fields: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + prod(shape) * DTYPES[precision].itemsize
        fields[name] = {"dtype": STORED[precision], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(fields).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_vocabulary(folder: Path, size: int) -> None:
    """Write a tokenizer of CLIP with so many tokens that reads letters one by one.

    Its two special tokens come last, as CLIP's do; those between the letters and them are unused.
    """
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + WORD_END for letter in letters)]
    tokens += [f"<unused{index}>" for index in range(size - len(tokens) - 2)]
    tokens += [CLIP_START, CLIP_END]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")


def main(
    file: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    model: Annotated[str, typer.Option(help=f"Of {', '.join(KNOWN)}.")] = "sd3.5-medium",
    precision: Annotated[str, typer.Option(help=f"Of {', '.join(STORED)}.")] = "fp32",
) -> None:
    """Write the random weights that benchmarks.generate runs, to export a bundle of them."""
    try:
        if model not in KNOWN or precision not in STORED:
            raise ValueError(f"there is no {model} in {precision}: see --help")
        write_checkpoint(file, KNOWN[model], precision)
    except (NoRoomError, OSError, ValueError) as error:
        print(f"benchmarks.random_sd35: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    typer.run(main)

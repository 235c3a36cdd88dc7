"""Find which weight a LoRA means: every trainer writes the names in a way of its own."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vkrt.errors import CheckpointError
from vkrt.weights.safety_limits import listed, shown
from vkrt.weights.sd35_names import diffusers_pieces

__all__ = ["Address", "Range", "Target", "Targets", "address_of", "extra_of", "split_key"]

Shape = tuple[int, ...]
Range = tuple[int, int]

TRANSFORMER = "transformer"

# What stands before a weight's path, by the model that it means. Behind one that ends with an
# underscore the dots of the path are underscores too.
PREFIXES = {
    TRANSFORMER: (
        *("transformer.", "model.diffusion_model.", "diffusion_model.", "unet."),
        *("lora_transformer.", "lora_transformer_", "lora_unet_", "lycoris_"),
    ),
    "clip_l": (
        *("text_encoder.", "clip_l.", "text_encoders.clip_l.transformer."),
        *("lora_te1.", "lora_te1_"),
    ),
    "clip_g": (
        *("text_encoder_2.", "clip_g.", "text_encoders.clip_g.transformer."),
        *("lora_te2.", "lora_te2_"),
    ),
    "t5": (
        *("text_encoder_3.", "t5.", "t5xxl.", "text_encoders.t5xxl.transformer."),
        *("lora_te3.", "lora_te3_"),
    ),
}
WRAPPER = "base_model.model."

KEY = re.compile(
    r"(?P<stem>.+?)\.(?:"
    r"(?P<matrix>lora_A|lora_B|lora_down|lora_up|lora(?:_linear_layer)?\.(?:down|up))"
    r"(?:\.[^.]+)?\.weight"
    r"|(?P<other>hada_w[12]_[ab]|lokr_w[12](?:_[ab])?|alpha|dora_scale|lora_magnitude_vector|diff)"
    r"(?:\.[^.]+){0,2})"
)
DOWN = ("_A", "down")
MAGNITUDES = ("dora_scale", "lora_magnitude_vector")

# Which weights of the transformer stand in the part that is worked out before sampling, with
# underscores for dots.
CONDITIONING = re.compile(
    r"^(t_embedder|y_embedder|context_embedder|time_text_embed)(_|$)"
    r"|(adaLN_modulation_1|_norm1_linear|_norm1_context_linear|norm_out_linear)$"
)

# What files of LoRAs hold besides, and what it is: embeddings that were trained along, changes of
# norms and biases. None of it is a matrix, and the LoRA is used without it.
EXTRAS = {
    re.compile(
        r"bundle_emb\.|(?:^|\.)(?:emb_params|string_to_param(?:\.|$))"
    ): "embeddings of words",
    re.compile(r"^clip_[lg]$"): "embeddings of words",
    re.compile(r"\.[wb]_norm$"): "changes of norms",
    re.compile(r"\.diff_b$"): "changes of biases",
}

PARTS = ("denoiser", "conditioning")
BLOCK = re.compile(r"joint_blocks\.(\d+)\.")


@dataclass(frozen=True)
class Address:
    """Say which weight is meant, in the words of the file.

    Attributes:
        part: of the model, such as "denoiser" or "clip_l".
        path: of the weight within the part, without ".weight".
        flat: the dots of the path are underscores.
    """

    part: str
    path: str
    flat: bool


@dataclass(frozen=True)
class Target:
    """Name a weight and the rows of it that a change covers.

    Attributes:
        weight: the parameter's name.
        shape: rows and columns of the change; a convolution's kernel counts as columns.
        ranges: where the change's rows go, in order: (start, stop) pairs.
    """

    weight: str
    shape: tuple[int, int]
    ranges: tuple[Range, ...]


class Targets:
    """Look up the weights of one part by the names that LoRA files give them."""

    def __init__(self, part: str, shapes: Mapping[str, Shape]) -> None:
        """Take the shapes of the part's parameters by name."""
        self.exact: dict[str, Target] = {}
        self.flat: dict[str, list[str]] = {}
        depth = depth_of(shapes) if part in PARTS else 0
        for name, shape in shapes.items():
            if name.endswith(".weight") and len(shape) > 1:
                self.exact |= own_names(name, shape)
                if part in PARTS:
                    self.exact |= names_of_diffusers(name, shape, depth)
        for path in self.exact:
            self.flat.setdefault(flattened(path), []).append(path)

    def find(self, address: Address) -> Target | None:
        """Return the target at an address, None if this part has none there.

        Raises:
            CheckpointError: underscores for dots make two names one.
        """
        if not address.flat:
            return self.exact.get(address.path)
        paths = self.flat.get(address.path, [])
        if len(paths) > 1:
            raise CheckpointError(
                f"{shown(address.path)} may be {listed(paths)}: save the LoRA with dotted names"
            )
        return self.exact[paths[0]] if paths else None


def split_key(key: str) -> tuple[str, str] | None:
    """Return what a tensor of a LoRA file belongs to and its role there; None for no such tensor.

    Roles: "up", "down", "alpha", "magnitude", "diff", "hada_w1_a" and its like, "lokr_w1" and its
    like.
    """
    match = KEY.fullmatch(key)
    if match is None:
        return None
    if match["matrix"]:
        return match["stem"], "down" if match["matrix"].endswith(DOWN) else "up"
    return match["stem"], "magnitude" if match["other"] in MAGNITUDES else match["other"]


def extra_of(key: str) -> str | None:
    """Return what a tensor is that files of LoRAs hold besides, None for any other."""
    return next((what for pattern, what in EXTRAS.items() if pattern.search(key)), None)


def address_of(stem: str) -> Address:
    """Return which weight the first half of a key means; without a prefix, the transformer's."""
    stem = stem.removeprefix(WRAPPER)
    for model, prefixes in PREFIXES.items():
        for prefix in prefixes:
            if stem.startswith(prefix):
                # Some trainers wrap the model before they name it, some after.
                path, flat = stem.removeprefix(prefix).removeprefix(WRAPPER), prefix.endswith("_")
                return Address(part_of(model, path), path, flat)
    return Address(part_of(TRANSFORMER, stem), stem, flat=False)


def part_of(model: str, path: str) -> str:
    """Return the part that holds a weight; the transformer is two of them."""
    if model != TRANSFORMER:
        return model
    return "conditioning" if CONDITIONING.search(flattened(path)) else "denoiser"


def flattened(path: str) -> str:
    """Return a path as trainers write it that allow no dots in it."""
    return path.replace(".", "_")


def depth_of(shapes: Iterable[str]) -> int:
    """Return the number of blocks that a transformer's parameters belong to."""
    blocks = filter(None, map(BLOCK.match, shapes))
    return max((int(block[1]) + 1 for block in blocks), default=0)


def own_names(name: str, shape: Shape) -> dict[str, Target]:
    """Return a weight by its own name, and without what newer versions of transformers drop."""
    target = make_target(name, shape, ((0, shape[0]),))
    path = name.removesuffix(".weight")
    return {path: target, path.removeprefix("text_model."): target}


def names_of_diffusers(name: str, shape: Shape, depth: int) -> dict[str, Target]:
    """Return a weight of the transformer, or slices of its rows, by the names of diffusers.

    Slices go by the weight's own name and their number too, as OneTrainer has them.
    """
    pieces = diffusers_pieces("transformer", name, depth)
    size = shape[0] // len(pieces)
    slices: dict[str, list[tuple[int, Range]]] = {}
    for i, piece in enumerate(pieces):
        slices.setdefault(piece.name, []).append((piece.half or 0, (i * size, (i + 1) * size)))
    named = {}
    for i, (theirs, ranges) in enumerate(slices.items()):
        target = make_target(name, shape, tuple(rows for _, rows in sorted(ranges)))
        named[theirs.removesuffix(".weight")] = target
        if len(slices) > 1:
            named[f"{name.removesuffix('.weight')}.{i}"] = target
    return named


def make_target(name: str, shape: Shape, ranges: tuple[Range, ...]) -> Target:
    """Return the target of a change to these rows of a weight."""
    rows = sum(stop - start for start, stop in ranges)
    return Target(name, (rows, math.prod(shape[1:])), ranges)

"""Load SAM 2 weights of any format into the module, strictly: all of it fits or nothing loads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from vkrt import catalog
from vkrt.errors import CheckpointError
from vkrt.models.sam2.model import Sam2
from vkrt.weights.checkpoint import read_tensors
from vkrt.weights.family import family_of
from vkrt.weights.hub import pull
from vkrt.weights.safety_limits import listed, shown
from vkrt.weights.sam2_names import is_transformers, official_name
from vkrt.weights.sam2_parts import completed, own_tensors, parts_in
from vkrt.weights.skip_init import SkipInit

__all__ = ["load_sam2", "recognise"]

Shapes = Mapping[str, tuple[int, ...]]

# What only tracking uses: transformers' Sam2Model and image-only exports leave all of it out.
MEMORY = (
    "memory_attention.",
    "memory_encoder.",
    "mask_downsample.",
    "obj_ptr_proj.",
    "obj_ptr_tpos_proj.",
    "maskmem_tpos_enc",
    "no_mem_pos_enc",
    "no_obj_ptr",
    "no_obj_embed_spatial",
)
ONLY_IN_2_1 = ("obj_ptr_tpos_proj.", "no_obj_embed_spatial")

BLOCKS = "image_encoder.trunk.blocks."
# Each is as long as a block's output is wide; one is enough.
BLOCK_WIDTHS = ("norm2.weight", "attn.proj.bias", "mlp.layers.1.bias")
# Python refuses to turn thousands of digits into a number.
MAX_INDEX_DIGITS = 4


def load_sam2(
    checkpoint: str | Path | None,
    name: str | None = None,
    image_size: int | None = None,
    cache: Path | None = None,
) -> tuple[catalog.Model, Sam2]:
    """Load a SAM 2 model in float32 on the CPU, in eval mode, without gradients.

    Args:
        checkpoint: a file or folder as in read_tensors, with official names or those of
            transformers' Sam2Model or Sam2VideoModel, behind any prefix; None takes the weights
            of `name` that are in the package or already downloaded. Where it holds whole modules
            alone (a fine-tuned mask decoder), the rest is those weights.
        name: the model by any name that catalog.find takes; None recognises it by its tensors.
        image_size: run at this input size, in pixels; weights do not depend on it.
        cache: folder of downloads; None is the default one.

    Returns:
        the model's catalog entry and its module. Without the memory weights (Sam2Model) the
        module's `has_memory` is False, those parameters are zero and the summary says so.

    Raises:
        CheckpointError: the weights are damaged, hostile, or of another model.
        DownloadError: checkpoint is None and there are no weights here.
        UnknownModelError: the catalog does not hold the name, or the size can't be.

    Warns:
        RuntimeWarning: parts of other models were left out, or the rest of the model was added.
    """
    wanted = None if name is None else catalog.find(name, image_size)
    if checkpoint is None:
        if wanted is None:
            raise CheckpointError("give a checkpoint, or the name of a model (see `vkrt models`)")
        checkpoint = pull(wanted, cache, offline=True)
    found = read_tensors(checkpoint)
    try:
        tensors = completed(own_tensors(found, checkpoint), wanted, cache, checkpoint)
        model = choose(shapes_of(tensors), wanted, image_size)
        module = build(model, tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{shown(checkpoint, 1000)}: {error}") from None
    if not module.has_memory:
        note = f"image weights only, no tracking, taken as version {model.config.version}"
        model = replace(model, summary=f"{model.summary}; {note}")
    return model, module


def recognise(shapes: Shapes) -> catalog.Model:
    """Return the model whose tensors have these shapes, under official or transformers' names.

    The size is known by the width and number of blocks in each stage of the trunk, the version
    by the tensors that 2.1 added; without any memory tensors it is taken as 2.1.

    Raises:
        CheckpointError: it is no known model; the message says what was seen.
    """
    if is_transformers(shapes):
        shapes = {official_name(name): shape for name, shape in shapes.items()}
    if not any(name.startswith(BLOCKS) for name in shapes):
        raise CheckpointError(why_not_sam2(shapes))
    stages = stages_of(shapes)
    for name in catalog.names():
        model = catalog.find(name)
        trunk = model.config.trunk
        same_trunk = stages == list(zip(trunk.dims, trunk.stages, strict=True))
        if same_trunk and model.config.version == version_of(shapes):
            return model
    seen = ", ".join(f"{count} blocks of {width} channels" for width, count in stages[:8])
    raise CheckpointError(
        f"this checkpoint holds a model that is not known, with {seen or 'no readable blocks'} "
        f"(version {version_of(shapes)}): give a checkpoint of {', '.join(catalog.names())}"
    )


def why_not_sam2(shapes: Shapes) -> str:
    """Return what a checkpoint without SAM 2's image encoder holds instead."""
    held = parts_in(shapes)
    if held:
        parts = " and ".join(part.rstrip(".") for part in held)
        return (
            f"this checkpoint holds {parts} of SAM 2 alone: name the model that it was trained "
            'from too, as in vkrt.load("sam2.1-tiny", PATH), or give a checkpoint of '
            f"{', '.join(catalog.names())}"
        )
    family = family_of(shapes)
    if family is not None:
        return f"this checkpoint is {family}"
    return (
        f"this checkpoint holds no SAM 2 model but {listed(sorted(shapes))}: "
        f"give a checkpoint of {', '.join(catalog.names())}"
    )


def stages_of(shapes: Shapes) -> list[tuple[int, int]]:
    """Return the width and number of blocks of each stage of the trunk, finest first."""
    widths: dict[int, int] = {}
    for name, shape in shapes.items():
        index, _, rest = name.removeprefix(BLOCKS).partition(".")
        known = name.startswith(BLOCKS) and rest in BLOCK_WIDTHS and index.isdecimal()
        if known and len(shape) == 1 and len(index) <= MAX_INDEX_DIGITS:
            widths[int(index)] = shape[0]
    stages: list[tuple[int, int]] = []
    for _, width in sorted(widths.items()):
        if stages and stages[-1][0] == width:
            stages[-1] = (width, stages[-1][1] + 1)
        else:
            stages.append((width, 1))
    return stages


def version_of(shapes: Shapes) -> str:
    """Return the version by what 2.1 added; 2.1 where memory tensors are absent."""
    newer = any(name.startswith(ONLY_IN_2_1) for name in shapes)
    return "2.1" if newer or not has_memory(shapes) else "2.0"


def has_memory(shapes: Shapes) -> bool:
    """Return whether any tensor belongs to the memory modules."""
    return any(name.startswith(MEMORY) for name in shapes)


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def choose(shapes: Shapes, wanted: catalog.Model | None, image_size: int | None) -> catalog.Model:
    """Return the wanted model, or the recognised one at the wanted input size."""
    if wanted is None:
        return catalog.find(recognise(shapes).name, image_size)
    try:
        held = recognise(shapes)
    except CheckpointError:
        # The comparison with the wanted model says more precisely what is wrong.
        return wanted
    same_size = held.config.trunk == wanted.config.trunk
    if held.name == wanted.name or (same_size and not has_memory(shapes)):
        return wanted
    raise CheckpointError(
        f"this checkpoint holds {held.name}, but {wanted.name} was asked for: "
        f"load it as {held.name}, or give a checkpoint of {wanted.name}"
    )


def build(model: catalog.Model, tensors: Mapping[str, Tensor]) -> Sam2:
    """Return the module with these tensors, taken over without a copy where they are float32."""
    with torch.random.fork_rng(devices=[]), SkipInit():
        module = Sam2(model.config)
    expected = module.state_dict()
    complete = has_memory(shapes_of(tensors))
    if not complete:
        expected = {k: v for k, v in expected.items() if not k.startswith(MEMORY)}
    check_fit(model, shapes_of(expected), tensors)
    ready = {name: to_float32(name, tensors[name]) for name in expected}
    if not complete:
        absent = {k: v for k, v in module.state_dict().items() if k not in expected}
        ready |= {name: torch.zeros(value.shape) for name, value in absent.items()}
    module.load_state_dict(ready, strict=True, assign=True)
    module.has_memory = complete
    return module.eval().requires_grad_(False)


def check_fit(model: catalog.Model, expected: Shapes, tensors: Mapping[str, Tensor]) -> None:
    """Compare names, shapes and kinds of dtype.

    Raises:
        CheckpointError: they differ; every kind of difference is in the one message.
    """
    both = [name for name in expected if name in tensors]
    problems = {
        "missing": [name for name in expected if name not in tensors],
        "unexpected": [name for name in tensors if name not in expected],
        "misshaped": [
            f"{name} is {as_text(tensors[name].shape)}, not {as_text(expected[name])}"
            for name in both
            if tuple(tensors[name].shape) != expected[name]
        ],
        "not floating point": [
            f"{name} is {tensors[name].dtype}"
            for name in both
            if not tensors[name].is_floating_point()
        ],
    }
    found = [f"{len(what)} {kind} ({listed(what)})" for kind, what in problems.items() if what]
    if found:
        raise CheckpointError(
            f"this checkpoint does not fit {model.name}: {'; '.join(found)}: "
            f"get an unchanged checkpoint of {model.name}"
        )


def as_text(shape: tuple[int, ...]) -> str:
    """Return a shape as a message shows it."""
    return "x".join(map(str, shape)) or "a single number"


def to_float32(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor as contiguous float32; it stays itself where it is that already.

    Raises:
        CheckpointError: it holds NaN or infinity.
    """
    try:
        tensor = tensor.to(torch.float32).contiguous()
    except RuntimeError:
        raise CheckpointError(
            f"{name} is {tensor.dtype}, which is not converted: save it as fp16, bf16 or fp32"
        ) from None
    # The extremes carry any NaN or infinity, and need no mask of the tensor's size.
    if not torch.stack(tensor.aminmax()).isfinite().all():
        raise CheckpointError(f"{name} holds NaN or infinity: get an undamaged checkpoint")
    return tensor

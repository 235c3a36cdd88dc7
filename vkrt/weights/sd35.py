"""Open Stable Diffusion 3.5 in any format, strictly; load its parts one by one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path

import torch
from torch import nn

from vkrt import catalog
from vkrt.errors import BackendError, CheckpointError
from vkrt.models.sd35.config import ControlNetConfig, Sd35Config
from vkrt.models.sd35.known import ENCODER_FILES, HUB_IDS, KNOWN
from vkrt.weights.hub import pull
from vkrt.weights.recipe import Assembler, Recipe
from vkrt.weights.safety_limits import shown
from vkrt.weights.sd35_config import described, known_name, recognise
from vkrt.weights.sd35_fit import PARTS_OF, Fit
from vkrt.weights.sd35_modules import build_part, shapes_of_part
from vkrt.weights.sd35_shapes import ShapeTable, controlnet_config
from vkrt.weights.sd35_sources import FOLDERS, TOKENIZERS, Component, find_components

__all__ = ["DTYPES", "Sd35Weights", "open_sd35"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Components that may come from files of their own.
SEPARATE = ("clip_l", "clip_g", "t5", "vae")
# As diffusers calls them.
OF_DIFFUSERS = {FOLDERS[kind]: kind for kind in SEPARATE}
SAMPLED_BYTES = 128

Paths = Mapping[str, str | os.PathLike[str] | None]


def open_sd35(
    checkpoint: str | Path | None,
    name: str | None = None,
    cache: Path | None = None,
    encoders: Paths | None = None,
    controlnet: str | Path | None = None,
) -> Sd35Weights:
    """Open the weights of a model; nothing but the headers of its files is read yet.

    Args:
        checkpoint: a .safetensors file with official names (the transformer alone, or with the
            VAE and text encoders) or a folder that diffusers saved; None takes the file of `name`
            that is already downloaded. Text encoders in a folder "text_encoders" beside the file
            are used too.
        name: the model by catalog name, hub id or file name; None recognises it by its shapes.
        cache: folder of downloads; None is the default one.
        encoders: files or folders of single components, by "clip_l", "clip_g", "t5" and "vae";
            they go before what the checkpoint holds. None leaves one out that is there: without
            "t5", prompts are read by the two CLIPs alone.
        controlnet: a ControlNet of the official 8B family, a file or a folder of diffusers.

    Raises:
        CheckpointError: a file is damaged, hostile, or of another model; all that is missing,
            unexpected or misshaped is in the one message.
        DownloadError: checkpoint is None and there are no weights here.
        UnknownModelError: there is no model of that name.
    """
    wanted = None if name is None else known_name(name)
    path = Path(checkpoint) if checkpoint is not None else downloaded(wanted, cache)
    given = paths_of(encoders or {}, controlnet)
    components, unexpected = find_components(path, given)
    try:
        found, config = recognise(components, wanted, path)
        control = control_config(components.get("controlnet"), config)
        counts = {"transformer": config.mmdit.depth, "vae": len(config.vae.multipliers)}
        fit = Fit(components, counts, unexpected)
        recipes = {
            part: fit.recipes(part, shapes_of_part(part, config, control))
            for kind in components
            for part in PARTS_OF[kind]
        }
        fit.finish(described(found, config))
    except CheckpointError as error:
        raise CheckpointError(f"{shown(path, 1000)}: {error}") from None
    return Sd35Weights(path, found, config, components, recipes, control)


def downloaded(wanted: str | None, cache: Path | None) -> Path:
    """Return the file of a model that is on this machine.

    Raises:
        CheckpointError: no known model is named.
        DownloadError: it is not here; the message says how to get it.
    """
    if wanted is None or wanted not in KNOWN:
        raise CheckpointError("give a checkpoint, or the name of a model (see `vkrt models`)")
    return pull(catalog.picture_models()[wanted], cache, offline=True)


def paths_of(encoders: Paths, controlnet: str | Path | None) -> dict[str, Path | None]:
    """Return the path of each component that is given by itself, None for one to leave out.

    Raises:
        CheckpointError: there is no such component, or it is given no path.
    """
    paths: dict[str, Path | None] = {}
    for given, place in encoders.items():
        kind = OF_DIFFUSERS.get(given, given)
        if kind not in SEPARATE:
            raise CheckpointError(
                f"encoders has {shown(given)}, and may have only {', '.join(SEPARATE)}"
            )
        if place is not None and (not isinstance(place, str | os.PathLike) or not str(place)):
            raise CheckpointError(
                f"encoders[{kind!r}] is {shown(repr(place))}: give a path, or None to leave it out"
            )
        paths[kind] = None if place is None else Path(place)
    return paths if controlnet is None else {**paths, "controlnet": Path(controlnet)}


def control_config(component: Component | None, config: Sd35Config) -> ControlNetConfig | None:
    """Return the config of a ControlNet if there is one.

    Raises:
        CheckpointError: it was made for another model.
    """
    if component is None:
        return None
    control = controlnet_config(
        ShapeTable("controlnet", component.shapes, component.settings), config.mmdit.head_dim
    )
    ours = (config.mmdit.dim, config.mmdit.pooled_dim, config.mmdit.patch)
    theirs = (control.dim, control.pooled_dim, control.patch)
    if ours != theirs:
        raise CheckpointError(
            f"this ControlNet is {control.dim} channels wide and takes {control.pooled_dim} pooled "
            f"ones, but the model has {config.mmdit.dim} and {config.mmdit.pooled_dim}: "
            "give a ControlNet made for it"
        )
    return control


class Sd35Weights:
    """Hold where each part's weights are; load them when they are wanted.

    Attributes:
        checkpoint: the file or folder.
        name: the catalog name, or "custom".
        config: the shape of the model, and what it is sampled with.
        controlnet: the shape of its ControlNet, or None.
        control: the condition that the ControlNet is made for ("blur", "canny", "depth"), or None
            where there is none or it does not say.
        parts: the parts that are there.
    """

    def __init__(
        self,
        checkpoint: Path,
        name: str,
        config: Sd35Config,
        components: Mapping[str, Component],
        recipes: Mapping[str, Mapping[str, Recipe]],
        controlnet: ControlNetConfig | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.name = name
        self.config = config
        self.controlnet = controlnet
        self.control = components["controlnet"].control if "controlnet" in components else None
        self.parts = frozenset(recipes)
        self.recipes = recipes
        self.components = components
        self.checked: set[str] = set()

    def bytes(self, part: str, dtype: str) -> int:
        """Return the bytes of a part's weights in "fp32", "bf16" or "fp16"; nothing is read.

        Raises:
            CheckpointError: the part is not there.
            BackendError: there is no such dtype.
        """
        count = sum(map(prod, self.shapes(part).values()))
        return count * torch_dtype(dtype).itemsize

    def load(self, part: str, dtype: str) -> nn.Module:
        """Return the module of a part on the CPU, in eval mode, without gradients.

        Tensors that the file has in this dtype are mapped, and so shared with other processes;
        others are read into place. The first load of a part looks at every value.

        Args:
            part: one of `parts`.
            dtype: "fp32", "bf16" or "fp16".

        Raises:
            CheckpointError: the part is not there, the file is damaged, or a value is no number.
            BackendError: there is no such dtype.
        """
        recipes = self.needed(part)
        module = build_part(part, self.config, self.controlnet)
        assembler = Assembler(torch_dtype(dtype), check=part not in self.checked)
        # A disk reads fastest in the order of the file.
        ordered = sorted(recipes.items(), key=lambda item: place_of(item[1]))
        tensors = {name: assembler.make(name, recipe) for name, recipe in ordered}
        module.load_state_dict(tensors, strict=True, assign=True)
        self.checked.add(part)
        return module.eval().requires_grad_(False)

    def shapes(self, part: str) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor of a part, by name; nothing is read.

        Raises:
            CheckpointError: the part is not there.
        """
        return {name: recipe.shape for name, recipe in self.needed(part).items()}

    def needed(self, part: str) -> Mapping[str, Recipe]:
        """Return the recipes of a part.

        Raises:
            CheckpointError: it is not there.
        """
        if part not in self.parts:
            raise CheckpointError(self.missing(part))
        return self.recipes[part]

    def missing(self, part: str) -> str:
        """Return one line that says how to give a part that is not there."""
        where = shown(self.checkpoint, 1000)
        kind = next((kind for kind, parts in PARTS_OF.items() if part in parts), None)
        if kind == "controlnet":
            return "no ControlNet was given: give its file or folder as controlnet="
        if kind not in SEPARATE:
            return f"{where} has no part {shown(part)}"
        file = ENCODER_FILES.get(kind, ("vae",))[0]
        of = HUB_IDS.get(self.name, HUB_IDS["sd3.5-large"])
        return f"{where} holds no {kind}: give encoders={{{kind!r}: PATH}}, such as {file} of {of}"

    def fingerprint(self) -> str:
        """Return a digest of names, shapes and a few values of every tensor.

        It is cheap, and other weights change it.
        """
        digest = hashlib.blake2b(digest_size=16)
        for kind, component in sorted(self.components.items()):
            scales = {f"{name} scale": scale.entry for name, scale in component.scales.items()}
            for name, entry in sorted({**component.entries, **scales}.items()):
                digest.update(f"{kind} {name} {entry.shape} {entry.dtype} ".encode())
                with entry.path.open("rb") as file:
                    file.seek(entry.offset)
                    digest.update(file.read(SAMPLED_BYTES))
        return digest.hexdigest()

    def tokenizer_folders(self) -> dict[str, Path]:
        """Return the folders of tokenizers in the checkpoint's folder, by text encoder."""
        folder = self.checkpoint if self.checkpoint.is_dir() else self.checkpoint.parent
        folders = {kind: folder / name for kind, name in TOKENIZERS.items()}
        return {kind: path for kind, path in folders.items() if path.is_dir()}


def place_of(recipe: Recipe) -> tuple[str, int]:
    """Return the file of a tensor and where in it the first values are."""
    if not recipe.runs:
        return "", 0
    entry = recipe.runs[0].entry
    return str(entry.path), entry.offset


def torch_dtype(name: str) -> torch.dtype:
    """Return the dtype of a name.

    Raises:
        BackendError: there is none.
    """
    if name not in DTYPES:
        raise BackendError(f"unknown dtype {name!r}: give {', '.join(DTYPES)}")
    return DTYPES[name]

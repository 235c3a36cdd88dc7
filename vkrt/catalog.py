"""Every model that vkrt knows by name: its config, hub id and file names. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import Protocol

from vkrt.errors import UnknownModelError
from vkrt.models.sam2.config import HieraConfig, MemoryConfig, Sam2Config
from vkrt.models.sd35.config import Sd35Config
from vkrt.models.sd35.known import FILES, HUB_IDS, KNOWN

__all__ = ["Model", "PictureModel", "Weights", "find", "names", "picture_models"]

_WEIGHTS = Path(__file__).parent / "demo" / "weights"
_TRUNKS = {
    "tiny": HieraConfig(96, 1, (1, 2, 7, 2), (5, 7, 9)),
    "small": HieraConfig(96, 1, (1, 2, 11, 2), (7, 10, 13)),
    "base-plus": HieraConfig(112, 2, (2, 3, 16, 3), (12, 16, 20), pos_embed_bkg=14),
    "large": HieraConfig(144, 2, (2, 6, 36, 4), (23, 33, 43), window_spec=(8, 4, 16, 8)),
}
_YAML_STEMS = {"tiny": "t", "small": "s", "base-plus": "b+", "large": "l"}


class Weights(Protocol):
    """Say where the weights of a model come from, as Model and PictureModel do."""

    @property
    def name(self) -> str:
        """Return the catalog name."""
        ...

    @property
    def hub_id(self) -> str | None:
        """Return the repository on the Hugging Face hub, or None."""
        ...

    @property
    def checkpoint(self) -> str | None:
        """Return the file in that repository."""
        ...

    @property
    def packaged(self) -> Path | None:
        """Return the weights inside this package, or None."""
        ...


@dataclass(frozen=True)
class PictureModel:
    """Name a model that makes pictures and say where its weights come from.

    Attributes:
        name: the catalog name, such as "sd3.5-medium".
        config: its shape, and what it is sampled with.
        hub_id: the repository on the Hugging Face hub.
        checkpoint: the file in that repository.
        packaged: None, as none is small enough.
    """

    name: str
    config: Sd35Config
    hub_id: str
    checkpoint: str
    packaged: Path | None = None

    @property
    def summary(self) -> str:
        """Return what it is, in a few words."""
        size = self.name.removeprefix("sd3.5-").replace("-", " ")
        return f"Stable Diffusion 3.5 {size}, official weights"


def picture_models() -> dict[str, PictureModel]:
    """Return every model that makes pictures, by its catalog name."""
    return {
        name: PictureModel(name, config, HUB_IDS[name], FILES[name])
        for name, config in KNOWN.items()
    }


@dataclass(frozen=True)
class Model:
    """Name a model and say where its weights come from.

    Attributes:
        name: the catalog name, such as "sam2.1-tiny".
        config: its shape.
        hub_id: the repository on the Hugging Face hub, or None.
        checkpoint: the file in that repository.
        yaml: upstream's config path, relative to its package.
        packaged: the weights inside this package, or None.
        packaged_bundle: the folder of a bundle of these weights inside this package, or None; it
            is of one input size, the model's own if `make bundle` ran since that was changed.
    """

    name: str
    config: Sam2Config
    hub_id: str | None = None
    checkpoint: str | None = None
    yaml: str | None = None
    packaged: Path | None = None
    packaged_bundle: Path | None = None
    summary: str = ""


def _official(version: str, size: str) -> Model:
    family = "sam2.1" if version == "2.1" else "sam2"
    return Model(
        name=f"{family}-{size}",
        config=Sam2Config(version, _TRUNKS[size]),
        hub_id=f"facebook/{family}-hiera-{size}",
        checkpoint=f"{family}_hiera_{size.replace('-', '_')}.pt",
        yaml=f"configs/{family}/{family}_hiera_{_YAML_STEMS[size]}.yaml",
        summary=f"SAM {version} {size}, official weights",
    )


_NANO = Model(
    name="sam2.1-nano",
    config=Sam2Config(
        version="2.1",
        trunk=HieraConfig(
            40, 1, (1, 2, 6, 1), (5, 7, 8), window_spec=(8, 4, 8, 8), pos_embed_bkg=8
        ),
        memory=MemoryConfig(mem_dim=32, num_layers=2, ffn_dim=256),
        image_size=512,
        hidden_dim=128,
        decoder_heads=2,
        decoder_mlp_dim=512,
    ),
    packaged=_WEIGHTS / "sam2.1-nano.safetensors",
    packaged_bundle=_WEIGHTS / "sam2.1-nano.vkrt",
    summary="demo model trained on procedural scenes, ships with vkrt",
)

_MODELS = {
    model.name: model
    for model in [
        _NANO,
        *(_official(version, size) for version in ("2.1", "2.0") for size in _TRUNKS),
    ]
}


def names() -> list[str]:
    """Return every catalog name, the packaged demo model first."""
    return list(_MODELS)


def _aliases() -> dict[str, str]:
    aliases: dict[str, str] = {}
    for model in _MODELS.values():
        for alias in (model.name, model.hub_id, model.yaml, model.checkpoint):
            if alias:
                aliases[alias.lower().replace("_", "-")] = model.name
        if model.yaml:
            # User code also names configs by the bare file name, with or without its ending.
            stem = model.yaml.rsplit("/", 1)[1]
            for alias in (stem, stem.removesuffix(".yaml"), model.yaml.removesuffix(".yaml")):
                aliases[alias.lower().replace("_", "-")] = model.name
        if model.checkpoint:
            aliases[model.checkpoint.removesuffix(".pt").lower().replace("_", "-")] = model.name
    return aliases


def _by_config(name: str) -> str | None:
    """Return the model of a config by its file name, whatever folders it is in; else None."""
    file = name.replace("\\", "/").rsplit("/", 1)[-1].replace("_", "-")
    for model in _MODELS.values():
        config = model.yaml.rsplit("/", 1)[1].replace("_", "-") if model.yaml else ""
        # Without its ending it may as well be a folder of weights.
        if config and (file == config or (f"{file}.yaml" == config and not Path(name).exists())):
            return model.name
    return None


def find(name: str | PathLike[str], image_size: int | None = None) -> Model:
    """Return the model of a catalog name, hub id, upstream config path or checkpoint file name.

    Args:
        name: any of the above; "_" and "-" are the same, case does not matter. A config may have
            any folders before its file name, separated in any way.
        image_size: run at this input size instead, in pixels.

    Raises:
        UnknownModelError: no model has that name; the message names the closest ones.
    """
    key = str(name).strip().lower().replace("_", "-")
    found = _aliases().get(key) or _by_config(str(name).strip().lower())
    if found is None:
        close = get_close_matches(key, list(_MODELS), n=3, cutoff=0.4) or list(_MODELS)
        raise UnknownModelError(
            f"unknown model {str(name)!r}; did you mean {', '.join(close)}? "
            "(vkrt models lists all of them)"
        )
    model = _MODELS[found]
    if image_size is None:
        return model
    try:
        return replace(model, config=model.config.at(image_size))
    except ValueError as error:
        raise UnknownModelError(str(error)) from None

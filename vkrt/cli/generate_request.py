"""What makes a picture, as `vkrt generate` is told it, stores it in a PNG and reads it back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vkrt.errors import GenerationError, ImageError, PromptError

if TYPE_CHECKING:
    from vkrt.media.image import Photo

__all__ = ["KINDS", "Recipe", "checked", "read_recipe"]

MODEL = "sd3.5-medium"
FILES = ("checkpoint", "tokenizers", "control_model")
ENCODERS = ("clip_l", "clip_g", "t5", "vae")
PICTURES = ("image", "mask", "control")
NUMBERS = (
    *("width", "height", "steps", "guidance", "seed", "strength", "control_scale", "sampler"),
    *("shift", "profile", "t5_length", "skip_layers", "skip_scale"),
)
LONGEST = 100_000
# What says nothing without another option.
NEEDS = {
    "mask": "image",
    "strength": "image",
    "control": "control_model",
    "control_scale": "control",
}


def is_text(value: Any) -> bool:
    """Tell whether a value is text of a sensible length."""
    return isinstance(value, str) and len(value) <= LONGEST and "\0" not in value


def is_whole(value: Any) -> bool:
    """Tell whether a value is a whole number, truth values aside."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Tell whether a value is a finite number, truth values aside."""
    return is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def is_layers(value: Any) -> bool:
    """Tell whether a value is a list of whole numbers."""
    return isinstance(value, list) and all(map(is_whole, value))


def is_loras(value: Any) -> bool:
    """Tell whether a value is a list of files and scales."""
    return isinstance(value, list) and all(
        isinstance(each, dict)
        and each.keys() == {"file", "scale"}
        and is_text(each["file"])
        and is_number(each["scale"])
        for each in value
    )


# What is stored, what it must be, and how that is called.
TEXT, WHOLE, NUMBER = (is_text, "text"), (is_whole, "a whole number"), (is_number, "a number")
KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("prompt", "negative", "model", "checkpoint", "control_model"), TEXT),
    **dict.fromkeys((*ENCODERS, *PICTURES, "tokenizers", "precision", "sampler", "profile"), TEXT),
    **dict.fromkeys(("width", "height", "steps", "seed", "t5_length"), WHOLE),
    **dict.fromkeys(("guidance", "strength", "control_scale", "shift", "skip_scale"), NUMBER),
    "skip_layers": (is_layers, "a list of whole numbers"),
    "loras": (is_loras, "a list of files and scales"),
}


@dataclass(frozen=True)
class Recipe:
    """Hold what was said of a picture; what was not said is not in it.

    Attributes:
        said: values by the names of KINDS; paths are texts.
    """

    said: Mapping[str, Any]

    @classmethod
    def of(cls, **given: Any) -> Recipe:
        """Return the recipe of values as they come from a command line; None was not said."""
        return cls(
            {
                name: str(value) if isinstance(value, Path) else value
                for name, value in given.items()
                if value is not None
            }
        )

    def over(self, earlier: Recipe) -> Recipe:
        """Return the recipe that says what this one says, and beyond that what another says."""
        return Recipe({**earlier.said, **self.said})

    def with_seed(self) -> Recipe:
        """Return the recipe with a seed, drawn where it has none."""
        from vkrt.engines.request import read_seed

        return self.over(Recipe({"seed": read_seed(None, 1)}))

    def check(self) -> None:
        """Refuse what can't be made, before anything is loaded.

        Raises:
            PromptError, GenerationError: saying what to give.
        """
        from vkrt.engines.schedule import make_schedule

        if "prompt" not in self.said:
            raise PromptError(
                'say what to make: vkrt generate "a lighthouse at dusk", or --from OLD.png'
            )
        for name, other in NEEDS.items():
            if name in self.said and other not in self.said:
                raise GenerationError(f"--{name} needs --{other}: give both".replace("_", "-"))
        names = self.said.keys() & {"shift", "profile", "sampler"}
        named = {name: self.said[name] for name in names}
        make_schedule(self.said.get("steps", 1), **named)

    @property
    def model(self) -> str:
        """Return the name of the model."""
        return self.said.get("model", MODEL)

    def loading(self) -> dict[str, Any]:
        """Return what vkrt.load is to be told of the weights, the model's name aside."""
        said = self.said
        found: dict[str, Any] = {name: Path(said[name]) for name in FILES if name in said}
        encoders = {name: Path(said[name]) for name in ENCODERS if name in said}
        if encoders:
            found["encoders"] = encoders
        if "precision" in said:
            found["precision"] = said["precision"]
        return found

    def read_pictures(self) -> dict[str, Photo]:
        """Return the pictures that the generation starts from, by name.

        Raises:
            ImageError: one can't be read.
        """
        from vkrt.media.image import read_image

        return {name: read_image(self.said[name]) for name in PICTURES if name in self.said}

    def asking(self) -> dict[str, Any]:
        """Return what the generation is to be told beside its pictures."""
        told = {name: self.said[name] for name in NUMBERS if name in self.said}
        return {"prompt": self.said["prompt"], "negative": self.said.get("negative", ""), **told}

    def inputs(self) -> list[Path]:
        """Return the files that are read."""
        named = (*PICTURES, *ENCODERS, *FILES)
        files = [self.said[name] for name in named if name in self.said]
        return [Path(file) for file in (*files, *(each["file"] for each in self.loras))]

    @property
    def loras(self) -> list[dict[str, Any]]:
        """Return file and scale of each LoRA."""
        return self.said.get("loras", [])

    def stored(self, used: Mapping[str, Any], index: int) -> dict[str, Any]:
        """Return what a picture's file is to say, so that it can be made again.

        Args:
            used: what the engine says that it used for this picture: its own numbers where none
                were said.
            index: of the picture; each has a seed of its own.
        """
        from vkrt import __version__

        # Pictures and weights were handed over in memory; what is kept are the names of files.
        known = {name: used[name] for name in NUMBERS if used.get(name) is not None}
        seed = self.said["seed"] + index
        every = {"vkrt": __version__, "model": self.model, **self.said, "seed": seed, **known}
        # In one order, so that a picture made again is the same file.
        order = ("vkrt", *KINDS)
        return {name: every[name] for name in order if name in every and self._matters(name)}

    def _matters(self, name: str) -> bool:
        """Tell whether a value has a meaning beside the others."""
        return name not in NEEDS or NEEDS[name] in self.said


def read_recipe(path: Path) -> Recipe:
    """Return what a picture's file says of how it was made, as far as this version knows it.

    Raises:
        ImageError: it says nothing, or what can't be.
    """
    from vkrt.media.picture import read_parameters

    return checked(read_parameters(path), str(path))


def checked(found: Mapping[str, Any], name: str) -> Recipe:
    """Return the recipe of parameters that a file of this name holds.

    Raises:
        ImageError: one is not of its kind.
    """
    said = {key: found[key] for key in KINDS if found.get(key) is not None}
    for key, value in said.items():
        fits, kind = KINDS[key]
        if not fits(value):
            raise ImageError(
                f"{name} says that {key} is {value!r:.40}, which is not {kind}: it can't be made "
                "again as it is; leave --from out and give the options"
            )
    return Recipe(said)

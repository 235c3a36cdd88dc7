"""Hold what a checkpoint of Stable Diffusion 3.5 has against what its parts need, strictly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod

from vkrt.errors import CheckpointError
from vkrt.weights.recipe import Recipe, Run
from vkrt.weights.safety_limits import listed
from vkrt.weights.sd35_names import Piece, diffusers_pieces
from vkrt.weights.sd35_sources import Component
from vkrt.weights.tensor_index import Entry

__all__ = ["BORROWED", "PARTS_OF", "Fit"]

# What each component is split into: its parts run at different times.
PARTS_OF: dict[str, tuple[str, ...]] = {
    "transformer": ("conditioning", "positions", "denoiser"),
    "clip_l": ("clip_l",),
    "clip_g": ("clip_g",),
    "t5": ("t5",),
    "vae": ("vae_encoder", "vae_decoder"),
    "controlnet": ("controlnet_conditioning", "controlnet"),
}
# What a part has of another component: a ControlNet embeds patches as the model that it leads.
BORROWED = {"controlnet": ("x_embedder.", "transformer")}

# Where it is not there it is none: an identity.
PROJECTION = ("clip_l", "text_projection.weight")

Shapes = Mapping[str, tuple[int, ...]]


@dataclass
class Fit:
    """Collect the recipes of parts, and every difference on the way.

    Args:
        components: what the checkpoint has.
        counts: blocks of the transformer and levels of the VAE.
        unexpected: names that belong to no component.
    """

    components: Mapping[str, Component]
    counts: Mapping[str, int]
    unexpected: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    misshaped: list[str] = field(default_factory=list)
    not_floats: list[str] = field(default_factory=list)
    used: set[tuple[str, str]] = field(default_factory=set)

    def recipes(self, part: str, shapes: Shapes) -> dict[str, Recipe]:
        """Return the recipe of each tensor of a part; what can't be made is left out."""
        made = {name: self.recipe(part, name, shape) for name, shape in shapes.items()}
        return {name: recipe for name, recipe in made.items() if recipe is not None}

    def recipe(self, part: str, name: str, shape: tuple[int, ...]) -> Recipe | None:
        """Return the recipe of one tensor, or None and note why there is none."""
        component = self.components[component_of(part, name)]
        if (component.kind, name) == PROJECTION and name not in component.entries:
            return Recipe(shape, ())
        pieces: tuple[Piece, ...] = (Piece(name),)
        if component.is_diffusers:
            count = self.counts.get(component.kind, 0)
            pieces = diffusers_pieces(component.kind, name, count)
        wholes = len({piece.name for piece in pieces})
        runs = [self.run(component, piece, (shape[0] // wholes, *shape[1:])) for piece in pieces]
        return Recipe(shape, tuple(run for run in runs if run)) if all(runs) else None

    def run(self, component: Component, piece: Piece, shape: tuple[int, ...]) -> Run | None:
        """Return where the values of a piece are, given the shape of its whole tensor."""
        shown_as = labelled(component.kind, piece.name)
        entry = component.entries.get(piece.name)
        self.used.add((component.kind, piece.name))
        if entry is None:
            self.missing.append(shown_as)
            return None
        if not same_shape(entry, shape):
            self.misshaped.append(f"{shown_as} is {as_text(entry.shape)}, not {as_text(shape)}")
            return None
        if entry.dtype is None:
            self.not_floats.append(shown_as)
            return None
        count = prod(shape)
        scale = component.scale_of(piece.name)
        if piece.half is None:
            return Run(entry, 0, count, scale)
        return Run(entry, piece.half * count // 2, count // 2, scale)

    def finish(self, model: str) -> None:
        """Refuse the checkpoint if anything differs.

        Raises:
            CheckpointError: it does; every kind of difference is in the one message.
        """
        unused = [
            labelled(kind, name)
            for kind, component in self.components.items()
            for name in component.entries
            if (kind, name) not in self.used
        ]
        problems = {
            "missing": self.missing,
            "unexpected": [*unused, *self.unexpected],
            "misshaped": self.misshaped,
            "not floating point": self.not_floats,
        }
        found = [
            f"{len(names)} {problem} ({listed(names)})"
            for problem, names in ((p, without_repeats(n)) for p, n in problems.items())
            if names
        ]
        if found:
            raise CheckpointError(
                f"this checkpoint does not fit {model}: {'; '.join(found)}: "
                "get an unchanged checkpoint"
            )


def component_of(part: str, name: str) -> str:
    """Return the component that has a tensor of a part."""
    start, lender = BORROWED.get(part, ("", ""))
    if lender and name.startswith(start):
        return lender
    return next(kind for kind, parts in PARTS_OF.items() if part in parts)


def labelled(kind: str, name: str) -> str:
    """Return a name as a message shows it: the transformer's are known by themselves."""
    return name if kind == "transformer" else f"{kind} {name}"


def without_repeats(names: Iterable[str]) -> list[str]:
    """Return names once each, in their order."""
    return list(dict.fromkeys(names))


def same_shape(entry: Entry, shape: tuple[int, ...]) -> bool:
    """Return whether a tensor has a shape; a 1x1 convolution may be there as a linear layer."""
    return entry.shape == shape or (shape[-2:] == (1, 1) and entry.shape == shape[:-2])


def as_text(shape: tuple[int, ...]) -> str:
    """Return a shape as a message shows it."""
    return "x".join(map(str, shape)) or "a single number"

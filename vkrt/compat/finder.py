"""Imports of upstream's package that find vkrt: what install() puts in front of Python's own.

Every module counts as a package without files, so that whatever `from sam2.x import y` does not
find is looked for as a module, and a message can say what there is.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from vkrt.errors import BackendError

__all__ = ["install", "uninstall"]

PACKAGE = "sam2"
# The names of each module of upstream's, and the module of vkrt that each is in.
MODULES: Mapping[str, Mapping[str, str]] = {
    PACKAGE: {},
    f"{PACKAGE}.build_sam": {
        "build_sam2": "builders",
        "build_sam2_hf": "builders",
        "build_sam2_video_predictor": "video_builders",
        "build_sam2_video_predictor_hf": "video_builders",
    },
    f"{PACKAGE}.sam2_image_predictor": {"SAM2ImagePredictor": "image_predictor"},
    f"{PACKAGE}.sam2_video_predictor": {
        "SAM2VideoPredictor": "sam2_video",
        "SAM2VideoPredictorVOS": "sam2_video",
    },
    f"{PACKAGE}.modeling": {},
    f"{PACKAGE}.modeling.sam2_base": {"NO_OBJ_SCORE": "video_masks", "SAM2Base": "handle"},
    f"{PACKAGE}.utils": {},
    f"{PACKAGE}.utils.transforms": {"SAM2Transforms": "transforms"},
    f"{PACKAGE}.utils.misc": dict.fromkeys(
        ("concat_points", "fill_holes_in_mask_scores", "mask_to_box"), "misc"
    ),
    f"{PACKAGE}.utils.amg": dict.fromkeys(
        (
            "area_from_rle",
            "batched_mask_to_box",
            "box_xyxy_to_xywh",
            "build_point_grid",
            "calculate_stability_score",
            "mask_to_rle_pytorch",
            "rle_to_mask",
        ),
        "amg",
    ),
}
# Where vkrt calls something otherwise.
OWN_NAMES = {"NO_OBJ_SCORE": "NO_OBJECT", "SAM2Base": "Sam2Handle"}
TO_COME = f"{PACKAGE}.automatic_mask_generator"


def install() -> None:
    """Let `import sam2` find vkrt's names in this process; doing it twice is fine.

    Call it before anything imports SAM 2's own package, which need not be there.

    Raises:
        BackendError: that package was imported already.
    """
    theirs = sys.modules.get(PACKAGE)
    if theirs is not None and not is_ours(theirs):
        place = getattr(theirs, "__file__", None) or "elsewhere"
        raise BackendError(
            f"{PACKAGE} was imported already, from {place}: call vkrt.compat.install() before that"
        )
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())


def uninstall() -> None:
    """Let later imports find SAM 2's own package again, if it is there."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, Finder)]
    for name in [n for n, module in sys.modules.items() if n in MODULES and is_ours(module)]:
        del sys.modules[name]


class Finder(MetaPathFinder):
    """Find upstream's modules here."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Return the spec of a module of upstream's, None of any other.

        Raises:
            ImportError: upstream has it, or may have, and vkrt has not.
        """
        if fullname.split(".", 1)[0] != PACKAGE:
            return None
        if fullname not in MODULES:
            # Of another kind, or with this name in it, `from sam2.x import y` would hide it.
            raise ImportError(missing(fullname))
        return ModuleSpec(fullname, ModuleLoader(), origin="vkrt", is_package=True)


class ModuleLoader(Loader):
    """Fill a module of upstream's with vkrt's names, each when it is asked for."""

    def exec_module(self, module: ModuleType) -> None:
        """Give a module its names."""
        names = MODULES[module.__name__]

        def find(name: str) -> Any:
            if name not in names:
                raise AttributeError(missing(f"{module.__name__}.{name}"))
            found = getattr(import_module(f"vkrt.compat.{names[name]}"), OWN_NAMES.get(name, name))
            setattr(module, name, found)
            return found

        module.__doc__ = f"{module.__name__} as vkrt has it: see vkrt.compat."
        module.__dict__.update(
            __all__=sorted(names), __getattr__=find, __dir__=lambda: sorted({*vars(module), *names})
        )


def is_ours(module: ModuleType) -> bool:
    """Tell whether a module is one that install() gave."""
    return isinstance(getattr(module.__spec__, "loader", None), ModuleLoader)


def missing(name: str) -> str:
    """Return what to say of a module or a name that is not there."""
    parent, _, last = name.rpartition(".")
    if name.startswith(TO_COME):
        return (
            f"vkrt has no {TO_COME} yet: a later version brings the automatic mask generator; "
            "prompt with a grid of points until then"
        )
    if parent not in MODULES:
        return f"vkrt has no {name}: of {PACKAGE} it has {', '.join(sorted(MODULES))}"
    inside = [n.rpartition(".")[2] for n in MODULES if n.rpartition(".")[0] == parent]
    known = sorted({*MODULES[parent], *inside})
    return f"vkrt has no {last} in {parent}, which has {', '.join(known)}"

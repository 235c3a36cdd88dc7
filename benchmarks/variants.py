"""Every variant that can be measured: what it is, what it needs and which cases it is made for."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.assets import Assets
    from benchmarks.peers.base import Peer

__all__ = [
    "CASES",
    "VARIANTS",
    "AbsentError",
    "Variant",
    "baseline_of",
    "import_variant",
    "open_variant",
]

CASES = ("encode", "click", "cold", "memory", "growth")
TIMED = ("encode", "click")
LIGHT = (*TIMED, "cold", "memory")
# Of those that take part, the first is what all others are compared with.
BASELINES = ("vkrt-onnx", "vkrt-bundle", "vkrt")


class AbsentError(Exception):
    """Say why a variant can't run here and what would change that."""


@dataclass(frozen=True)
class Variant:
    """Describe one variant.

    Attributes:
        name: how tables and results.csv call it.
        target: module and class of the peer; importing it imports what the variant needs and
            nothing else, so that a process of its own holds only that.
        parts: of the assets that it loads.
        cases: those it takes part in unless told otherwise.
        packages: optional ones without which it can't run, or its parts can't be made.
        is_ours: whether it is vkrt.
    """

    name: str
    target: str
    parts: tuple[str, ...]
    cases: tuple[str, ...] = LIGHT
    packages: tuple[str, ...] = ()
    is_ours: bool = False


OURS, PEERS = "benchmarks.peers.ours", "benchmarks.peers"
EXPORT = ("onnx", "onnxscript")
ORT = (*EXPORT, "onnxruntime")
PLAIN, INT8 = ("plain-fp32", "masks"), ("plain-fp32", "plain-int8", "masks")

VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("vkrt", f"{OURS}:Ours", ("weights",), CASES, is_ours=True),
        Variant("vkrt-onnx", f"{OURS}:OursOnnx", ("weights",), TIMED, ORT, True),
        Variant(
            "vkrt-openvino",
            f"{OURS}:OursOpenVino",
            ("weights",),
            TIMED,
            (*ORT, "openvino"),
            True,
        ),
        Variant(
            "vkrt-bundle",
            f"{OURS}:OursBundle",
            ("weights", "bundle-fp32"),
            ("cold", "memory", "growth"),
            ORT,
            True,
        ),
        Variant("vkrt-int8", f"{OURS}:OursInt8", ("weights", "bundle-int8"), CASES, ORT, True),
        Variant("transformers", f"{PEERS}.transformers_eager:TransformersEager", ("weights",)),
        Variant(
            "transformers-compile",
            f"{PEERS}.transformers_compile:TransformersCompile",
            ("weights",),
            TIMED,
        ),
        Variant("onnxruntime", f"{PEERS}.onnx_runtime:OnnxRuntime", PLAIN, CASES, ORT),
        Variant("onnxruntime-int8", f"{PEERS}.onnx_runtime:OnnxRuntimeInt8", INT8, LIGHT, ORT),
        Variant("openvino", f"{PEERS}.open_vino:OpenVino", PLAIN, LIGHT, (*EXPORT, "openvino")),
    )
}


def check_packages(variant: Variant) -> None:
    """Refuse a variant whose packages are not installed.

    Raises:
        AbsentError: one is not.
    """
    absent = [name for name in variant.packages if find_spec(name) is None]
    if absent:
        raise AbsentError(f"{', '.join(absent)} not installed: pip install 'vkrt[bench]'")


def import_variant(variant: Variant) -> Any:
    """Return the peer's class, all that it needs being imported.

    Raises:
        AbsentError: its packages are not installed.
    """
    check_packages(variant)
    module, _, name = variant.target.partition(":")
    return getattr(import_module(module), name)


def open_variant(variant: Variant, assets: Assets, threads: int) -> Peer:
    """Return a variant with the assets' weights, which must have been made.

    Raises:
        AbsentError: its packages are not installed.
    """
    peer: Peer = import_variant(variant).load(assets, threads)
    return peer


def baseline_of(names: list[str]) -> str | None:
    """Return which of these variants the others are compared with; None without vkrt."""
    return next((name for name in BASELINES if name in names), None)

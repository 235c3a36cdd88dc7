"""The C++ part, or the numpy stand-ins where it is missing: chosen once, at import."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

from vkrt.media import fallback

__all__ = ["available", "operations", "why_missing"]

SWITCH = "VKRT_NO_NATIVE"


def find() -> tuple[ModuleType | None, str | None]:
    """Return the compiled module, or None and one line that says why it is not used."""
    if os.environ.get(SWITCH, "") not in ("", "0"):
        return None, f"turned off by {SWITCH}={os.environ[SWITCH]}; unset it for full speed"
    try:
        return importlib.import_module("vkrt._native"), None
    except ImportError as error:
        return None, (
            f"the C++ part did not load ({error}); numpy stand-ins serve, only slower: "
            "install a C++17 compiler and install vkrt again"
        )


_module, _reason = find()

# What fallback.__all__ names, with the same arguments either way; but the C++ takes one plane or
# more, while fallback answers for none too.
operations: ModuleType = _module or fallback


def available() -> bool:
    """Tell whether the C++ part is in use."""
    return _module is not None


def why_missing() -> str | None:
    """Return one line that says why the C++ part is not in use, or None where it is."""
    return _reason

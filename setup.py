"""Build what pyproject.toml can't state: the computed package list and the optional C++ part."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CompileError, LinkError

ROOTS = {"vkrt": "vkrt", "vkrt.kernels": "kernels", "vkrt.export": "export"}
# No contraction to fused multiply-add: every machine then gets the same masks to the last pixel.
UNIX_FLAGS = ["-O3", "-ffp-contract=off", "-pthread"]
MSVC_FLAGS = ["/O2", "/fp:precise"]


def find_packages() -> list[str]:
    """Return every folder with an __init__.py below the roots, as a dotted name."""
    return [
        ".".join([package, *init.parent.relative_to(folder).parts])
        for package, folder in ROOTS.items()
        for init in sorted(Path(folder).rglob("__init__.py"))
    ]


def say(reason: str) -> None:
    """Tell that the C++ part is left out, and what to do."""
    print(
        f"vkrt: built without its C++ part ({reason}); numpy stand-ins will serve, only slower. "
        "For full speed install a C++17 compiler and install vkrt again.",
        file=sys.stderr,
    )


def extensions() -> list[Extension]:
    """Return the C++ extension, or nothing where pybind11 is not at hand."""
    try:
        from pybind11.setup_helpers import Pybind11Extension
    except ImportError:
        say("pybind11 is missing")
        return []
    return [
        Pybind11Extension(
            "vkrt._native",
            sorted(str(path) for path in Path("csrc").glob("*.cpp")),
            depends=sorted(str(path) for path in Path("csrc").glob("*.h")),
            cxx_std=17,
            extra_link_args=["-pthread"] if sys.platform != "win32" else [],
            optional=True,
        )
    ]


class OptionalBuild(build_ext):
    """Compile the extension; where that fails, say so in one line and go on."""

    def build_extension(self, ext: Extension) -> None:
        """Compile one extension with the flags of the compiler at hand."""
        msvc = self.compiler.compiler_type == "msvc"
        ext.extra_compile_args = [*ext.extra_compile_args, *(MSVC_FLAGS if msvc else UNIX_FLAGS)]
        try:
            super().build_extension(ext)
        except (BaseError, CompileError, LinkError, OSError) as error:
            say(textwrap.shorten(str(error), 120))


setup(
    package_dir=ROOTS,
    packages=find_packages(),
    ext_modules=extensions(),
    cmdclass={"build_ext": OptionalBuild},
)

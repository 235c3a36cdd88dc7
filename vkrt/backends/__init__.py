"""Backends by name: which ones this machine can run, and making the one that is wanted."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from vkrt.backends.base import Backend
from vkrt.errors import BackendError
from vkrt.options import Options

__all__ = ["Candidate", "candidates", "choose", "create"]


@dataclass(frozen=True)
class Candidate:
    """Say whether a backend can run here.

    Attributes:
        name: the backend.
        usable: whether it can run.
        reason: why, or why not.
        install: the command that would make it usable, "" if it is.
    """

    name: str
    usable: bool
    reason: str
    install: str = ""


@dataclass(frozen=True)
class _Kind:
    name: str
    needs: str
    extra: str
    target: str


# In the order in which "auto" tries them.
_KINDS = (_Kind("eager", "torch", "torch", "vkrt.backends.eager:EagerBackend"),)


def candidates() -> list[Candidate]:
    """Return every backend, in the order in which "auto" tries them; imports none of them."""
    found = []
    for kind in _KINDS:
        if find_spec(kind.needs) is not None:
            found.append(Candidate(kind.name, True, f"{kind.needs} is installed"))
        else:
            install = f"pip install 'vkrt[{kind.extra}]'"
            found.append(Candidate(kind.name, False, f"{kind.needs} is not installed", install))
    return found


def choose(wanted: str) -> Candidate:
    """Return the backend of a name, or the first usable one for "auto".

    Raises:
        BackendError: it is not usable here; the message names the command that installs it.
    """
    known = [c for c in candidates() if wanted in ("auto", c.name)]
    for candidate in known:
        if candidate.usable:
            return candidate
    reasons = "; ".join(f"{c.name}: {c.reason}, run {c.install}" for c in known)
    raise BackendError(f"no backend can run here: {reasons or f'{wanted!r} is unknown'}")


def create(options: Options) -> Backend:
    """Return the backend that the options ask for.

    Raises:
        BackendError: neither it nor, for "auto", any other can run here.
    """
    chosen = choose(options.backend)
    target = next(kind.target for kind in _KINDS if kind.name == chosen.name)
    module, _, attribute = target.partition(":")
    backend: Backend = getattr(import_module(module), attribute)(options)
    return backend

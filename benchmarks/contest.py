"""Who takes part: variants of one model with the same weights, each of which has agreed."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch

from benchmarks.agreement import check_agreement, check_own
from benchmarks.assets import Assets
from benchmarks.exports import assets_of, provide
from benchmarks.peers.base import OpenPeer, Peer
from benchmarks.peers.ours import Ours
from benchmarks.photo import clicks_on
from benchmarks.variants import VARIANTS, AbsentError, Variant, check_packages, open_variant
from vkrt import BackendError, catalog

__all__ = ["Contest", "Entrant", "enter"]

GATE_CLICKS = 3


@dataclass(frozen=True)
class Entrant:
    """Hold a variant that agrees with the others.

    Attributes:
        backend, precision: of its peer.
        error: largest relative error, see SpeedRow.max_rel_error; None with nothing to compare.
        peer: what is timed, None if it only runs in processes of its own.
    """

    variant: Variant
    backend: str
    precision: str
    error: float | None
    peer: Peer | None


@dataclass
class Contest:
    """Hold the entrants of one model.

    Attributes:
        photo: (H, W, 3) uint8 that all segment.
        threads: of each variant.
        entrants: by variant's name, in the order in which they were named.
    """

    model: catalog.Model
    assets: Assets
    photo: np.ndarray
    threads: int
    entrants: dict[str, Entrant]

    def release(self) -> None:
        """Let go of every peer, before other processes need the memory."""
        self.entrants = {k: replace(entrant, peer=None) for k, entrant in self.entrants.items()}
        gc.collect()


def enter(
    model: catalog.Model,
    photo: np.ndarray,
    names: Iterable[str],
    kept: Collection[str],
    threads: int,
    leave_out: Callable[[str, AbsentError], object],
) -> Contest:
    """Build every variant with the same weights and see that it agrees with eager vkrt.

    Args:
        names: of the variants.
        kept: which of them run in this process later on; the others are let go of at once.
        leave_out: what to do about a variant that can't run here; it then takes no part.

    Raises:
        DisagreementError: one does not agree.
    """
    torch.compiler.reset()
    torch.set_num_threads(threads)
    assets = assets_of(model, photo)
    provide(assets, ["weights"])
    ours = Ours.load(assets, threads)
    entrants = {}
    for name in names:
        try:
            entrant = admit(VARIANTS[name], ours, assets, photo, threads)
        except AbsentError as error:
            leave_out(name, error)
            continue
        entrants[name] = entrant if name in kept else replace(entrant, peer=None)
    others = [e.error for e in entrants.values() if e.precision == "fp32" and e.error is not None]
    if ours.name in entrants and others:
        entrants[ours.name] = replace(entrants[ours.name], error=max(others))
    return Contest(model, assets, photo, threads, entrants)


def admit(variant: Variant, ours: Ours, assets: Assets, photo: np.ndarray, threads: int) -> Entrant:
    """Build one variant and compare it with eager vkrt.

    Raises:
        AbsentError: it can't run here.
        DisagreementError: it does not agree.
    """
    if variant.name == ours.name:
        return Entrant(variant, ours.backend, ours.precision, None, ours)
    check_packages(variant)
    provide(assets, variant.parts)
    try:
        peer = open_variant(variant, assets, threads)
    except BackendError as error:
        raise AbsentError(str(error)) from None
    clicks = clicks_on(photo, GATE_CLICKS)
    if isinstance(peer, Ours):
        worst = check_own(ours, peer, photo, clicks)
    else:
        worst = check_agreement(ours, cast("OpenPeer[Any]", peer), photo, clicks)
    return Entrant(variant, peer.backend, peer.precision, worst, peer)

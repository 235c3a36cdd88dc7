"""The correctness gate: nothing is timed that does not compute the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.peers.base import OpenPeer
from benchmarks.peers.ours import Ours
from vkrt.media.image import STD, to_input

__all__ = ["LIMITS", "DisagreementError", "check_agreement", "check_own"]

# Relative errors by precision. Int8 gets what random weights, which nothing calibrates, do to it;
# its quality is measured on the demo model, where masks mean something.
LIMITS = {"fp32": 1e-4, "int8": 0.3}
# The peer rounds the resized photo to uint8, we do not: at most half a level, or one after its
# kernel's fixed-point weights.
PIXEL_ERROR = 1.05 / (255 * min(STD))
# Where a logit is zero but for rounding, either answer is right.
MASK_ERROR = 1e-4
FEATURES = ("high_res_s0", "high_res_s1", "image")  # of strides 4, 8 and 16


class DisagreementError(Exception):
    """Say that a peer and vkrt do not compute the same, so no ratio of theirs means a thing."""


def check(what: str, error: float, limit: float) -> float:
    """Return the error; refuse one beyond the limit, or none at all (NaN)."""
    if not error <= limit:
        raise DisagreementError(f"{what} differ by {error:.3g}, more than {limit:.3g}")
    return error


def relative_error(got: np.ndarray, wanted: np.ndarray) -> float:
    """Return the largest difference over the largest wanted value; infinite for other shapes."""
    if got.shape != wanted.shape:
        return float("inf")
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def check_agreement(
    ours: Ours,
    peer: OpenPeer[Any],
    photo: np.ndarray,
    clicks: Sequence[tuple[float, float]],
) -> float:
    """Return a peer's largest relative error to eager vkrt in embeddings, logits and scores.

    Both models see the same pixels: those of our resize, which may not differ from the peer's by
    more than a level of uint8. The peer's way from logits to full-size masks must give our masks.

    Raises:
        DisagreementError: something differs by more than its limit.
    """
    limit, name = LIMITS[peer.precision], peer.name
    pixels = to_input(photo, peer.side)[None]
    off = np.abs(pixels - np.asarray(peer.preprocess(photo))).max()
    check(f"{name}: preprocessed pixels", float(off), PIXEL_ERROR)
    embedding = ours.encode(photo)
    features = ours.segmenter.feature_maps(embedding)
    theirs = peer.embed(peer.from_host(pixels))
    worst = 0.0
    for port, found in zip(FEATURES, theirs, strict=True):
        error = relative_error(np.asarray(found), features[port])
        worst = max(worst, check(f"{name}: embeddings {port}", error, limit))
    for x, y in clicks:
        answer = embedding.predict(points=[[x, y]], labels=[1])
        logits, scores = peer.decode(theirs, peer.scaled(embedding.size, x, y))
        for what, got, wanted in (
            ("logits", logits, answer.logits),
            ("scores", scores, answer.scores),
        ):
            error = relative_error(np.asarray(got), wanted)
            worst = max(worst, check(f"{name}: {what} of ({x:g}, {y:g})", error, limit))
        masks = peer.postprocess(peer.from_host(answer.logits), embedding.size)
        check(f"{name}: masks", float((masks != answer.masks).mean()), MASK_ERROR)
    return worst


def check_own(
    ours: Ours, other: Ours, photo: np.ndarray, clicks: Sequence[tuple[float, float]]
) -> float:
    """Return the largest relative error of another variant of vkrt to the eager one.

    Everything both give is compared, whole masks too where the precision is the same.

    Raises:
        DisagreementError: something differs by more than its limit.
    """
    limit, name = LIMITS[other.precision], other.name
    embedding, its = ours.encode(photo), other.encode(photo)
    features, theirs = ours.segmenter.feature_maps(embedding), other.segmenter.feature_maps(its)
    worst = 0.0
    for port in FEATURES:
        error = relative_error(theirs[port], features[port])
        worst = max(worst, check(f"{name}: embeddings {port}", error, limit))
    for x, y in clicks:
        wanted = embedding.predict(points=[[x, y]], labels=[1])
        got = its.predict(points=[[x, y]], labels=[1])
        for what in ("logits", "scores"):
            error = relative_error(getattr(got, what), getattr(wanted, what))
            worst = max(worst, check(f"{name}: {what} of ({x:g}, {y:g})", error, limit))
        if other.precision == ours.precision:
            check(f"{name}: masks", float((got.masks != wanted.masks).mean()), MASK_ERROR)
    return worst

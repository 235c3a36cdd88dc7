"""The correctness gate: nothing is timed that does not compute the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.ours import Ours
from benchmarks.peers.transformers_eager import TransformersEager
from vkrt.media.image import STD, to_input

__all__ = ["RELATIVE", "DisagreementError", "check_agreement"]

RELATIVE = 1e-4
# The peer rounds the resized photo to uint8, we do not: at most half a level, or one after its
# kernel's fixed-point weights.
PIXEL_ERROR = 1.05 / (255 * min(STD))
# Where a logit is zero but for rounding, either answer is right.
MASK_ERROR = 1e-4


class DisagreementError(Exception):
    """Say that a peer and vkrt do not compute the same, so no ratio of theirs means a thing."""


def check(what: str, error: float, limit: float) -> float:
    """Return the error; refuse one beyond the limit, or none at all (NaN)."""
    if not error <= limit:
        raise DisagreementError(f"{what} differ by {error:.3g}, more than {limit:.3g}")
    return error


def relative_error(got: np.ndarray, wanted: Tensor) -> float:
    """Return the largest difference over the largest wanted value; infinite for other shapes."""
    other = wanted.numpy()
    if got.shape != other.shape:
        return float("inf")
    return float(np.abs(got - other).max() / np.abs(other).max())


def check_agreement(
    ours: Ours,
    peer: TransformersEager,
    photo: np.ndarray,
    clicks: Sequence[tuple[float, float]],
    limit: float = RELATIVE,
) -> float:
    """Return the largest relative error among embeddings, logits and scores.

    Both models see the same pixels: those of our resize, which may not differ from the peer's by
    more than a level of uint8. The peer's way from logits to full-size masks must give our masks.

    Raises:
        DisagreementError: something differs by more than its limit.
    """
    pixels = torch.from_numpy(to_input(photo, peer.side))[None]
    off = (pixels - peer.preprocess(photo)).abs().max().item()
    check(f"{peer.name}: preprocessed pixels", off, PIXEL_ERROR)
    embedding = ours.segmenter.encode(photo)
    features = ours.segmenter.host_features(embedding)
    theirs = peer.embed(pixels)
    worst = 0.0
    for port, wanted in zip(("high_res_s0", "high_res_s1", "image"), theirs, strict=True):
        error = relative_error(features[port], wanted)
        worst = max(worst, check(f"{peer.name}: embeddings {port}", error, limit))
    for x, y in clicks:
        answer = embedding.predict(points=[[x, y]], labels=[1])
        logits, scores = peer.decode(theirs, peer.scaled(embedding.size, x, y))
        for name, got, wanted in (
            ("logits", answer.logits, logits),
            ("scores", answer.scores, scores),
        ):
            error = relative_error(got, wanted)
            worst = max(worst, check(f"{peer.name}: {name} of ({x:g}, {y:g})", error, limit))
        masks = peer.postprocess(torch.from_numpy(answer.logits), embedding.size)
        check(f"{peer.name}: masks", float((masks != answer.masks).mean()), MASK_ERROR)
    return worst

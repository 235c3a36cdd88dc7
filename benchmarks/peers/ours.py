"""vkrt itself, through vkrt.load and nothing else. Imports no peer and no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import vkrt
from benchmarks.assets import Assets

__all__ = ["Ours", "OursBundle", "OursInt8", "OursOnnx"]


@contextmanager
def cache_at(folder: Path) -> Iterator[None]:
    """Let vkrt keep its caches in a folder meanwhile."""
    before = os.environ.get("VKRT_CACHE")
    os.environ["VKRT_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["VKRT_CACHE"]
        else:
            os.environ["VKRT_CACHE"] = before


class Ours:
    """Segment with eager vkrt in fp32 on the CPU, without an embedding cache.

    Attributes:
        segmenter: what vkrt.load gave.
    """

    name = "vkrt"
    backend = "eager"
    precision = "fp32"

    def __init__(self, segmenter: vkrt.Segmenter) -> None:
        self.segmenter = segmenter

    @classmethod
    def load(cls, assets: Assets, threads: int) -> Ours:
        """Return one with the shared weights.

        Raises:
            BackendError: the backend is not to be had here.
        """
        segmenter = vkrt.load(
            assets.model,
            assets.checkpoint,
            backend=cls.backend,
            device="cpu",
            precision=cls.precision,
            threads=threads,
            image_size=assets.image_size,
            # The cache would turn every encode after the first into a lookup.
            embedding_cache_bytes=0,
        )
        return cls(segmenter)

    def encode(self, photo: np.ndarray) -> vkrt.ImageEmbedding:
        """Return the embedding of a photo (H, W, 3) uint8."""
        return self.segmenter.encode(photo)

    def click(
        self, embedding: vkrt.ImageEmbedding, x: float, y: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return masks (3, H, W) bool and scores (3,) of a click, in pixels of the photo."""
        answer = embedding.predict(points=[[x, y]], labels=[1])
        return answer.masks, answer.scores


class OursOnnx(Ours):
    """Segment with vkrt's ONNX backend: the same call, which exports once and keeps the bundle."""

    name = "vkrt-onnx"
    backend = "onnx"

    @classmethod
    def load(cls, assets: Assets, threads: int) -> Ours:
        """Return one with the shared weights, exported by this version of the sources.

        Raises:
            BackendError: the backend is not to be had here.
        """
        with cache_at(assets.part(f"bundle-cache-{cls.precision}")):
            return super().load(assets, threads)


class OursOpenVino(OursOnnx):
    """Segment with vkrt's OpenVINO backend, which runs the same bundle."""

    name = "vkrt-openvino"
    backend = "openvino"


class OursBundle(Ours):
    """Segment with a bundle of vkrt, as it is deployed: a folder, and no torch."""

    name = "vkrt-bundle"
    backend = "onnx"

    @classmethod
    def load(cls, assets: Assets, threads: int) -> Ours:
        """Return one that runs the bundle.

        Raises:
            BackendError: the backend is not to be had here.
        """
        bundle = assets.bundle(cls.precision)
        return cls(vkrt.load(bundle, threads=threads, embedding_cache_bytes=0))


class OursInt8(OursBundle):
    """Segment with an int8 bundle of vkrt."""

    name = "vkrt-int8"
    precision = "int8"

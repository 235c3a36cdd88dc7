"""Peak memory of a variant: one that runs alone, in a process of its own."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from benchmarks.machine import peak_rss_mib
from benchmarks.peers.base import Peer
from benchmarks.photo import CLICKS, set_photo
from vkrt import catalog

__all__ = ["VARIANTS", "build_alone", "peak_of"]

VARIANTS = ("vkrt", "transformers", "transformers-compile")


def build_alone(variant: str, model: catalog.Model) -> Peer:
    """Return a variant with random weights; imports nothing that it does not use itself."""
    if variant == "vkrt":
        from benchmarks.peers.ours import Ours
        from vkrt.models.sam2.model import Sam2

        return Ours(model, Sam2(model.config))
    from benchmarks.peers.transformers_compile import TransformersCompile
    from benchmarks.peers.transformers_eager import TransformersEager
    from benchmarks.peers.transformers_sam2 import oracle_model

    kind = TransformersEager if variant == "transformers" else TransformersCompile
    return kind(oracle_model(model.config), model.config.image_size)


def segment_once(variant: str, name: str, image_size: int, threads: int) -> float | None:
    """Encode and click once in this process and return its peak memory in MiB."""
    import torch

    torch.set_num_threads(threads)
    peer = build_alone(variant, catalog.find(name, image_size))
    peer.click(peer.encode(set_photo()), *CLICKS[0])
    return peak_rss_mib()


def peak_of(variant: str, model: catalog.Model, threads: int) -> float | None:
    """Return the peak memory in MiB of a process that only segments once; None if unknown."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        job = pool.submit(segment_once, variant, model.name, model.config.image_size, threads)
        return job.result()

"""vkrt.load: from a name or a file to a model that runs."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from vkrt import backends, catalog
from vkrt.engines.sam2_image import Segmenter
from vkrt.errors import UnknownModelError
from vkrt.options import EMBEDDING_CACHE_BYTES, Options

__all__ = ["load"]

FINGERPRINT_VALUES = 64


def load(
    model: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    backend: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    image_size: int | None = None,
    embedding_cache_bytes: int = EMBEDDING_CACHE_BYTES,
) -> Segmenter:
    """Load a model.

    Args:
        model: a catalog name ("sam2.1-tiny"), hub id or upstream config path; or the path of a
            checkpoint, whose model is then recognised from its tensors.
        checkpoint: an official .pt, a .safetensors file or a transformers folder; None takes
            the packaged weights, or those that `vkrt pull` fetched.
        backend: "auto" or "eager".
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: "auto", "fp32", "bf16" or "fp16".
        threads: CPU threads; None leaves the machine's default.
        image_size: side of the model's square input, a multiple of 32; None is the model's own.
        embedding_cache_bytes: bound of the embedding cache; 0 turns it off.

    Raises:
        UnknownModelError: no such model.
        CheckpointError: the weights are damaged or of another model.
        DownloadError: the weights are not here; says which file to fetch.
        BackendError: the backend, device or precision is not to be had here.
    """
    options = Options(
        backend=backend,
        device=device,
        precision=precision,
        threads=threads,
        embedding_cache_bytes=embedding_cache_bytes,
    )
    name, source = resolve(model, checkpoint)
    if name is not None:
        catalog.find(name, image_size)
    chosen = backends.create(options)
    # Behind `create`, so that a missing torch is told in one line and not as an ImportError.
    from vkrt.models.sam2.stages import image_stages
    from vkrt.weights.sam2 import load_sam2

    known, module = load_sam2(source, name, image_size, options.cache)
    return Segmenter(
        name=known.name,
        config=known.config,
        stages=image_stages(module),
        backend=chosen,
        fingerprint=fingerprint(module),
        embedding_cache_bytes=options.embedding_cache_bytes,
        threads=options.threads,
    )


def resolve(
    model: str | os.PathLike[str], checkpoint: str | os.PathLike[str] | None
) -> tuple[str | None, Path | None]:
    """Return the name and the weights that the caller means; a path alone has no name."""
    if checkpoint is not None:
        return os.fspath(model), Path(checkpoint)
    try:
        catalog.find(os.fspath(model))
    except UnknownModelError:
        if Path(model).exists():
            return None, Path(model)
        raise
    return os.fspath(model), None


def fingerprint(module: Any) -> str:
    """Return a digest of some values of every parameter: cheap, and other weights change it."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        values = tensor.flatten()[:FINGERPRINT_VALUES].float().cpu().numpy()
        digest.update(values.tobytes())
    return digest.hexdigest()

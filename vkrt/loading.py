"""vkrt.load: from a name or a file to a model that runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from vkrt.arguments import choice
from vkrt.engines.origin import remember
from vkrt.errors import BackendError
from vkrt.load_arguments import check_sources, refuse_others
from vkrt.loading_sam2 import load_segmenter
from vkrt.meant import Paths, understand
from vkrt.options import EMBEDDING_CACHE_BYTES, EXPORTS, Options

__all__ = ["load"]


def load(
    model: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    backend: str = "auto",
    device: str = "auto",
    precision: str | Mapping[str, str] = "auto",
    threads: int | None = None,
    image_size: int | None = None,
    embedding_cache_bytes: int = EMBEDDING_CACHE_BYTES,
    memory_limit: int | None = None,
    encoders: Mapping[str, str | os.PathLike[str] | None] | None = None,
    tokenizers: Paths | None = None,
    control_model: str | os.PathLike[str] | None = None,
    export: str = "auto",
    report: Callable[[str, float], None] | None = None,
) -> Any:
    """Load a model: a Segmenter of SAM 2, or a Generator of Stable Diffusion 3.5.

    Args:
        model: a catalog name ("sam2.1-tiny"), hub id or upstream config path; or the path of a
            checkpoint, whose model is then recognised from its tensors; or the folder of a bundle
            that `vkrt export` wrote, of either family, which needs no torch.
        checkpoint: an official .pt, a .safetensors file, a transformers folder, the index of its
            shards or a bundle; None takes the packaged weights, or those that `vkrt pull` fetched.
            Prefixes of names and what training keeps beside the weights make no difference. A
            file of whole modules of SAM 2 alone (a fine-tuned mask decoder) is put over those
            weights of the model.
        backend: "eager" runs PyTorch, "onnx" ONNX Runtime, "openvino" OpenVINO; for these two a
            checkpoint is exported once, into the cache folder, unless a bundle of it ships with
            vkrt. "auto" is what $VKRT_BACKEND says; else, on a CPU, "onnx" for what is a bundle
            already and "eager" for other checkpoints, until they were exported (see export).
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: "auto", "fp32", "bf16", "fp16" or "int8"; of a Generator also by stage, as
            "bf16,vae_decoder=fp32" or a mapping; in a bundle fp16 is that of the stored
            weights alone. "int8" always runs on ONNX Runtime, with the image encoder's products in
            integers as far as masks allow, and attention in bf16 where the CPU is faster so; its
            export takes minutes, and is kept in the cache.
        threads: CPU threads, up to 1024; None leaves the machine's default.
        image_size: of a Segmenter: side of the model's square input, a multiple of 32 up to 4096;
            None is the model's own.
        embedding_cache_bytes: of a Segmenter: bound of its embedding cache, up to 2**50; 0 turns
            it off.
        memory_limit: of a Generator: bytes that its stages may use on its device, up to 2**50;
            None is no limit.
        encoders: of a Generator whose checkpoint lacks them, the files of "clip_l", "clip_g", "t5"
            and "vae"; None leaves one out that the checkpoint has. Without T5, prompts are read by
            the two CLIPs alone.
        tokenizers: of a Generator: a folder that has them, or one for "clip_l" and "t5" each; None
            looks in the folder of the checkpoint.
        control_model: a ControlNet for a Generator, a file or a folder of diffusers.
        export: what happens to a Segmenter's checkpoint that ONNX Runtime could run and that was
            not exported yet. "first" exports it now, which takes minutes, into the cache folder.
            "behind" gives the model at once, on PyTorch, while a process of low priority exports
            it; between two calls the model goes over to ONNX Runtime, with its cached embeddings.
            That process takes as much memory again and ends with this one. "never" exports
            nothing. "auto" is what $VKRT_EXPORT says; else "behind", but only once the model is
            used a minute or more after it was loaded. What was exported before is used in any
            case. An export that failed is not tried again until versions change. A service that
            is to export nothing calls vkrt.forbid_exports or sets VKRT_EXPORT=forbid.
        report: is called with what is being done and which share of an export, 0 to 1, is done.

    Raises:
        UnknownModelError: no such model.
        CheckpointError: the weights or the bundle are damaged or of another model.
        DownloadError: the weights are not here; says which file to fetch.
        BackendError: the backend, device or precision is not to be had here, or an argument is of
            models of the other kind.
    """
    arguments = {name: value for name, value in locals().items() if name != "report"}
    loaded = load_meant(**arguments, report=report)
    remember(loaded, load, **arguments)
    return loaded


def load_meant(
    model: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] | None,
    *,
    backend: str,
    device: str,
    precision: str | Mapping[str, str],
    threads: int | None,
    image_size: int | None,
    embedding_cache_bytes: int,
    memory_limit: int | None,
    encoders: Mapping[str, str | os.PathLike[str]] | None,
    tokenizers: Paths | None,
    control_model: str | os.PathLike[str] | None,
    export: str,
    report: Callable[[str, float], None] | None,
) -> Any:
    """Return the model of a call of load."""
    check_sources(model, checkpoint, image_size, precision, encoders, tokenizers, control_model)
    settings: dict[str, Any] = {"backend": backend, "device": device, "threads": threads}
    settings["export"] = choice("export", export, EXPORTS, kind=BackendError)
    settings["report"] = report
    meant = understand(model, checkpoint)
    if meant.makes_pictures:
        usual = isinstance(embedding_cache_bytes, int) and (
            embedding_cache_bytes == EMBEDDING_CACHE_BYTES
        )
        given = None if usual else embedding_cache_bytes
        refuse_others(
            "makes pictures", "segments", image_size=image_size, embedding_cache_bytes=given
        )
        # Who segments does not wait for what makes pictures to be imported.
        from vkrt.loading_sd35 import load_generator

        if export in ("first", "behind"):
            raise BackendError(
                "a model that makes pictures is not exported while it loads: run `vkrt export`, "
                "then load the bundle"
            )
        options = Options(**settings, memory_limit=memory_limit)
        return load_generator(meant, options, precision, encoders, tokenizers, control_model)
    refuse_others(
        "segments",
        "makes pictures",
        memory_limit=memory_limit,
        encoders=encoders,
        tokenizers=tokenizers,
        control_model=control_model,
    )
    if not isinstance(precision, str):
        raise BackendError('a model that segments has one precision: give one, such as "fp32"')
    options = Options(**settings, precision=precision, embedding_cache_bytes=embedding_cache_bytes)
    return load_segmenter(meant, image_size, options)

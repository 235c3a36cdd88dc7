"""Which stages of a bundle int8 is for: an image encoder, or a transformer that makes pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from vkrt.export.int8.recipe import ENCODER, Int8, quantize_encoder
from vkrt.export.int8.transformer import TRANSFORMER, quantize_transformer
from vkrt.manifest import SD35, Header
from vkrt.stage import Stage

__all__ = ["quantize_stages", "wants_draft"]


def wants_draft(name: str) -> bool:
    """Tell whether a stage is quantized from a draft of its graph."""
    return name == ENCODER or name in TRANSFORMER


def quantize_stages(
    stages: Mapping[str, Stage],
    drafts: Mapping[str, Path],
    header: Header,
    files: Mapping[str, Path],
    how: Int8,
) -> tuple[dict[str, Stage], Header]:
    """Replace files of stages that int8 is for; return those stages, and what the header says now.

    Args:
        stages: all of the bundle by name, whose modules are paths of fp32 files, or CutFiles.
        drafts: of the stages that want one; they are deleted.
        header: what the bundle is to be.
        files: what else belongs to it, by name.
        how: to quantize.

    Raises:
        BackendError: int8 is not faster here, or loses too much.
        GenerationError: it gives NaN.
    """
    if header.family != SD35:
        made, record = quantize_encoder(stages, drafts, header, how)
        return made, replace(header, quantization=record)
    made, record = quantize_transformer(stages, drafts, header, files, how)
    weights = {**header.settings["weights"], **{n: data_bytes(s) for n, s in made.items()}}
    return made, replace(
        header, quantization=record, settings={**header.settings, "weights": weights}
    )


def data_bytes(stage: Stage) -> int:
    """Return what the weights of a stage take; those that were drafts lie beside the graph."""
    path = Path(stage.module)
    return path.with_name(f"{path.name}.data").stat().st_size

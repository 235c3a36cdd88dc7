"""One stage becomes one .onnx file, by torch.export and torch's own translation."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from vkrt.errors import BackendError
from vkrt.export import whole
from vkrt.export.attention import TRANSLATIONS
from vkrt.export.cut import cut_at_marks
from vkrt.export.files import save_model
from vkrt.export.half import store_half
from vkrt.export.inputs import random_inputs, traced_sizes
from vkrt.export.marks import expand_marks
from vkrt.export.optimize import optimize
from vkrt.export.registry import kept_registry
from vkrt.export.shared import save_sharing
from vkrt.export.simplify import simplify
from vkrt.stage import Stage
from vkrt.steps import CutFile

__all__ = ["OPSET", "stage_to_onnx", "write_model"]

OPSET = 20


@runtime_checkable
class Foldable(Protocol):
    """Have something that can be computed for good once the weights no longer change."""

    def fold_constants(self) -> None:
        """Fold it into the weights, in place."""
        ...


def stage_to_onnx(
    stage: Stage,
    path: Path,
    precision: str = "fp32",
    may_cut: bool = False,
    draft: Path | None = None,
) -> Path | CutFile:
    """Write a stage as an .onnx file whose inputs and outputs have the ports' names and symbols.

    Weights over 2 GB go into a second file beside it, path.data; those of a stage that is cut
    always do, and its pieces share them.

    Args:
        stage: its module is a torch module in float32 on the CPU.
        path: the file to write.
        precision: "fp32", or "fp16" to store large weights so; the arithmetic stays in fp32.
        may_cut: where there are attentions that kernels of our own compute faster, write the
            pieces around them as well.
        draft: where to write, too, what `write_model` can make such files of once more; it shares
            their weights and has to lie in their folder.

    Returns:
        the path, with the steps of the stage where it was cut.

    Raises:
        BackendError: torch can't export it; a bug of the model or of the exporter.
    """
    model = translate(replace(stage, module=folded(stage.module)))
    tidy(model)
    if precision == "fp16":
        store_half(model)
    return write_model(model, stage, path, may_cut, draft)


def tidy(model: ir.Model) -> None:
    """Rewrite an optimized model as runtimes compute it fastest, without notes."""
    simplify(model)
    strip_notes(model)


def write_model(
    model: ir.Model, stage: Stage, path: Path, may_cut: bool = False, draft: Path | None = None
) -> Path | CutFile:
    """Write the graph of a stage in which attentions are marks; it is changed.

    The arguments and what is returned are those of stage_to_onnx.
    """
    kept = {} if draft is None else {draft: model.clone()}
    cut = cut_at_marks(model, path) if may_cut else None
    expand_marks(model)
    restore_symbols(model, stage)
    if cut is None and not kept:
        save_model(model, path)
        return path
    pieces = {} if cut is None else cut.pieces
    save_sharing({path: model, **pieces, **kept}, path.with_name(f"{path.name}.data"))
    return path if cut is None else CutFile(path, cut.steps)


def folded(module: nn.Module) -> nn.Module:
    """Return a module that computes the same, its constants folded into copies of its weights."""
    parts = [part for part in module.modules() if isinstance(part, Foldable)]
    if not parts:
        return module
    changed = {id(tensor) for part in parts for tensor in tensors_of(part)}
    # All others are shared.
    kept = {id(tensor): tensor for tensor in tensors_of(module) if id(tensor) not in changed}
    twin = deepcopy(module, kept)
    for part in twin.modules():
        if isinstance(part, Foldable):
            part.fold_constants()
    return twin


def tensors_of(module: Any) -> list[Tensor]:
    """Return the weights and the buffers of a module."""
    return [*module.parameters(), *module.buffers()]


def translate(stage: Stage) -> ir.Model:
    """Return the ONNX model that torch makes of a stage, optimized."""
    with quiet(), told(stage), uncollected():
        return optimized(trace(stage))


def trace(stage: Stage) -> ir.Model:
    """Return the ONNX model that torch makes of a stage as it is."""
    arrays = random_inputs(stage, traced_sizes(stage), np.random.default_rng(0))
    program = torch.export.export(
        stage.module.eval(),
        tuple(map(torch.from_numpy, arrays)),
        dynamic_shapes=varying(stage),
        strict=False,
    )
    return whole_or_apart(program, stage)


def optimized(model: ir.Model) -> ir.Model:
    """Return a model that computes the same in fewer nodes; the one that is given is used up."""
    weights = [*model.graph.initializers.values()]
    optimize(model)
    made = model.clone()
    # What optimizes remembers nodes for good, and with them all weights that these lead to.
    for value in (*weights, *model.graph.initializers.values()):
        value.const_value = None
    return made


@contextmanager
def uncollected() -> Iterator[None]:
    """Collect no garbage meanwhile: a trace makes millions of objects, most of which stay."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def told(stage: Stage) -> Iterator[None]:
    """Tell in one line what torch says where it can't export a stage."""
    try:
        yield
    except Exception as error:
        # Dozens of kinds, from the tracer, the shape solver and the translation.
        reason = " ".join(str(error).split())
        raise BackendError(f"torch can't export {stage.name}: {reason:.300}") from error


def whole_or_apart(program: ExportedProgram, stage: Stage) -> ir.Model:
    """Return the ONNX model of a program, its operators taken apart only where they have to be."""
    if whole.keep_whole(program):
        try:
            return to_model(program, stage)
        except torch.onnx.OnnxExporterError:
            whole.take_apart(program)
    return to_model(program, stage)


def to_model(program: ExportedProgram, stage: Stage) -> ir.Model:
    """Return the ONNX model of a traced program."""
    with kept_registry():
        translated = torch.onnx.export(
            program,
            dynamo=True,
            custom_translation_table={**whole.TRANSLATIONS, **TRANSLATIONS},
            opset_version=OPSET,
            input_names=[port.name for port in stage.inputs],
            output_names=[port.name for port in stage.outputs],
            verbose=False,
            optimize=False,
        )
    assert translated is not None
    return translated.model


def varying(stage: Stage) -> tuple[dict[int, Any], ...]:
    """Return for each input which of its axes vary, as torch.export takes it."""
    dims = {symbol: torch.export.Dim(symbol) for symbol in stage.symbols}
    return tuple(
        {axis: dims[size] for axis, size in enumerate(port.shape) if size in dims}
        for port in stage.inputs
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what torch's exporter tells its own developers from the user."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def restore_symbols(model: ir.Model, stage: Stage) -> None:
    """Give inputs and outputs the ports' symbols, and drop those that the tracer made up."""
    for value in every_value(model):
        value.shape = None
    graph = model.graph
    for ports, values in ((stage.inputs, graph.inputs), (stage.outputs, graph.outputs)):
        for port, value in zip(ports, values, strict=True):
            value.shape = ir.Shape(port.shape)


def every_value(model: ir.Model) -> Iterator[ir.Value]:
    """Give every input and every value that a node makes."""
    yield from model.graph.inputs
    for node in model.graph.all_nodes():
        yield from node.outputs


def strip_notes(model: ir.Model) -> None:
    """Drop the exporter's notes: they hold paths of this machine and change from run to run."""
    graph = model.graph
    values = [*every_value(model), *graph.initializers.values()]
    noted: list[Any] = [model, graph, *graph.all_nodes(), *values]
    for item in noted:
        item.metadata_props.clear()
        item.doc_string = None

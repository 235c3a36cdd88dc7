"""OpenVINO: runs the .onnx files of a bundle on the CPU with its own kernels, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import openvino as ov
from openvino import properties
from openvino.properties import hint

from vkrt.backends.cut import CutProgram, RunPiece, runs_cut
from vkrt.backends.host import HostBackend, lay_out
from vkrt.errors import BackendError
from vkrt.forks import keep_in_children
from vkrt.options import Options, usable_cores
from vkrt.stage import Program, Stage
from vkrt.steps import Piece

__all__ = ["OpenVinoBackend"]

DEVICE = "CPU"


class OpenVinoBackend(HostBackend["OpenVinoProgram | CutProgram"]):
    """Run stages whose modules are paths of .onnx files with OpenVINO's CPU plugin.

    Raises:
        BackendError: the options name another device.
    """

    name = "openvino"
    device = "cpu"

    def __init__(self, options: Options) -> None:
        super().__init__()
        if options.device not in ("auto", "cpu"):
            raise BackendError(
                f"device {options.device!r} is not usable by the openvino backend; use cpu"
            )
        self._core = core()
        self._threads = options.threads or usable_cores()
        self._settings = settings(self._threads)

    def prepare(self, stage: Stage) -> Program:
        """Return a program that runs the stage's .onnx file.

        Raises:
            BackendError: OpenVINO can't run it, or its inputs and outputs are not the ports.
            CheckpointError: its files changed since they were verified.
        """
        if runs_cut(stage):
            program = CutProgram(stage, self._open_piece, self._threads)
            stage.check()
            return self._keep(program)
        compiled = self._compile(Path(stage.module))
        stage.check()
        check_ports(stage, compiled)
        return self._keep(OpenVinoProgram(compiled, stage))

    def _compile(self, path: Path) -> ov.CompiledModel:
        try:
            compiled = self._core.compile_model(path, DEVICE, self._settings)
        except Exception as error:
            # OpenVINO raises RuntimeError of many lines, from the reader and from the plugin.
            reason = " ".join(str(error).split())
            raise BackendError(
                f"openvino {ov.__version__} can't run {path} ({reason:.200}): "
                'update openvino or take backend="onnx"'
            ) from error
        keep_in_children(compiled)
        return compiled

    def _open_piece(self, piece: Piece) -> RunPiece:
        """Return what runs a piece of a stage's graph."""
        compiled, lock = self._compile(piece.path), Lock()
        request = new_request(compiled)
        outputs = {name: compiled.output(name) for name in piece.outputs}
        fixed = {name: tuple(o.shape) for name, o in outputs.items() if is_fixed(o)}
        varying = [name for name in outputs if name not in fixed]

        def run(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            made = {name: np.empty(shape, np.float32) for name, shape in fixed.items()}
            with lock:
                for name, array in (*arrays.items(), *made.items()):
                    request.set_tensor(name, ov.Tensor(array, shared_memory=True))
                request.infer()
                # These are the request's own, which its next call writes again.
                return made | {name: request.get_tensor(name).data.copy() for name in varying}

        return run


class OpenVinoProgram:
    """Run one compiled model, one call at a time; every call writes into arrays of its own."""

    def __init__(self, compiled: ov.CompiledModel, stage: Stage) -> None:
        self._request: ov.InferRequest | None = new_request(compiled)
        self._stage = stage
        self._lock = Lock()

    def __call__(self, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return one array per output port.

        Raises:
            ValueError: an array does not fit its port.
            BackendError: the backend was closed.
        """
        stage = self._stage
        given, made, _ = lay_out(stage, arrays)
        with self._lock:
            if self._request is None:
                raise BackendError("this model was closed; load it again")
            for port, array in zip((*stage.inputs, *stage.outputs), (*given, *made), strict=True):
                self._request.set_tensor(port.name, ov.Tensor(array, shared_memory=True))
            self._request.infer()
        return made

    def close(self) -> None:
        """Release the compiled model."""
        with self._lock:
            self._request = None


def new_request(compiled: ov.CompiledModel) -> ov.InferRequest:
    """Return a request of a model, whose end waits for threads."""
    request = compiled.create_infer_request()
    keep_in_children(request)
    return request


def is_fixed(output: ov.ConstOutput) -> bool:
    """Tell whether an output is float32 of a shape that does not depend on the inputs."""
    return bool(output.partial_shape.is_static) and output.element_type == ov.Type.f32


@cache
def core() -> ov.Core:
    """Return the one core of this process.

    The last core to go unloads its plugins, and with other native libraries loaded since (PyAV's
    among them) the process then crashes, at once or when it exits.
    """
    return ov.Core()


def settings(threads: int) -> dict[Any, Any]:
    """Return how every model is compiled."""
    return {
        hint.performance_mode: hint.PerformanceMode.LATENCY,
        # Where the CPU has bf16, OpenVINO would take it unasked.
        hint.inference_precision: ov.Type.f32,
        properties.inference_num_threads: threads,
        # The cores are not its own: the pre- and post-processing and the program around us run too.
        hint.enable_cpu_pinning: False,
    }


def check_ports(stage: Stage, compiled: ov.CompiledModel) -> None:
    """Refuse a file whose inputs and outputs are not the stage's ports."""
    for ports, nodes in ((stage.inputs, compiled.inputs), (stage.outputs, compiled.outputs)):
        wanted = {port.name for port in ports}
        found = [node.get_names() for node in nodes]
        if len(found) != len(wanted) or not all(names & wanted for names in found):
            have = ", ".join(sorted(min(names) for names in found))
            raise BackendError(
                f"{stage.module} has {have} where {stage.name} has "
                f"{', '.join(sorted(wanted))}: export the bundle again"
            )

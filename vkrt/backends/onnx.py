"""ONNX Runtime: runs the .onnx files of a bundle on numpy arrays, without torch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from ctypes.util import find_library
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from vkrt.backends.cut import CutProgram, RunPiece, runs_cut
from vkrt.backends.host import HostBackend, lay_out
from vkrt.errors import BackendError
from vkrt.forks import keep_in_children
from vkrt.options import Options, usable_cores, usable_memory
from vkrt.stage import Program, Stage
from vkrt.steps import Piece

__all__ = ["OnnxBackend"]

CPU, CUDA, TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))
ERRORS_ONLY = 3
# The arena takes what is asked for, not the next power of two.
SAME_AS_REQUESTED = 1
FREE_ARENA = ("memory.enable_memory_arena_shrinkage", "cpu:0")
SETTINGS = {
    # Weights of exact size beside the arena, which every session of the process shares.
    "session.use_device_allocator_for_initializers": "1",
    "session.use_env_allocators": "1",
    # Between two runs the cores are free for the pre- and post-processing.
    "session.force_spinning_stop": "1",
    "session.load_model_format": "ONNX",
}


class OnnxBackend(HostBackend["OnnxProgram | CutProgram"]):
    """Run stages whose modules are paths of .onnx files with ONNX Runtime.

    Attributes:
        device: "cpu", or "cuda:N" where a session has a GPU provider.

    Raises:
        BackendError: the options name a device of another kind.

    Warns:
        RuntimeWarning: once, where a GPU was asked for and the CPU serves.
    """

    name = "onnx"

    def __init__(self, options: Options) -> None:
        super().__init__()
        self._threads = options.threads or usable_cores()
        self._providers = pick_providers(options.device, options.cache / "tensorrt")
        on_gpu = len(self._providers) > 1
        self.device = f"cuda:{device_index(options.device)}" if on_gpu else "cpu"
        if options.device.startswith("cuda") and not on_gpu:
            fall_back(f"this onnxruntime has only {', '.join(ort.get_available_providers())}")

    def prepare(self, stage: Stage) -> Program:
        """Return a program that runs the stage's .onnx file.

        Raises:
            BackendError: ONNX Runtime can't run it, or its inputs and outputs are not the ports.
            CheckpointError: its files changed since they were verified.
        """
        if self.device == "cpu" and runs_cut(stage):
            program = CutProgram(stage, self._open_piece, self._threads)
            stage.check()
            return self._keep(program)
        session = self._open(Path(stage.module), fixed=not stage.symbols)
        stage.check()
        check_ports(stage, session)
        return self._keep(OnnxProgram(session, stage))

    def _open_piece(self, piece: Piece) -> RunPiece:
        """Return what runs a piece of a stage's graph."""
        session = self._open(piece.path, fixed=False)

        def run(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            with told(piece.path):
                made = session.run(piece.outputs, dict(arrays))
            return dict(zip(piece.outputs, made, strict=True))

        return run

    def _open(self, path: Path, fixed: bool) -> ort.InferenceSession:
        set_arena()
        options = session_options(self._threads, fixed)
        try:
            session = ort.InferenceSession(path, options, providers=self._providers)
        except Exception as error:
            # ONNX Runtime has no common class for what it raises.
            reason = " ".join(str(error).split())
            raise BackendError(
                f"onnxruntime {ort.__version__} can't run {path} ({reason:.200}): "
                "update onnxruntime or export again"
            ) from error
        keep_in_children(session)
        if self.device != "cpu" and session.get_providers()[0] == CPU:
            self.device = "cpu"
            fall_back("its GPU provider did not start")
        return session


class OnnxProgram:
    """Run one session; every call writes into arrays of its own."""

    def __init__(self, session: ort.InferenceSession, stage: Stage) -> None:
        self._session: ort.InferenceSession | None = session
        self._stage = stage
        self._largest: dict[str, int] = {}

    def __call__(self, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return one array per output port.

        Raises:
            ValueError: an array does not fit its port.
            BackendError: the backend was closed, or the run failed: memory may not suffice.
        """
        session, stage = self._session, self._stage
        if session is None:
            raise BackendError("this model was closed; load it again")
        given, made, sizes = lay_out(stage, arrays)
        binding = session.io_binding()
        for port, array in zip(stage.inputs, given, strict=True):
            binding.bind_input(port.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for port, array in zip(stage.outputs, made, strict=True):
            binding.bind_output(port.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        with told(stage.module):
            session.run_with_iobinding(binding, self._run_options(sizes))
        return made

    def _run_options(self, sizes: dict[str, int]) -> ort.RunOptions:
        """Return options that empty the arena after a call larger than those before it.

        What smaller calls left in the arena is of no use to a larger one, so without that a
        series of growing sizes would take the memory of all of them together.
        """
        options = ort.RunOptions()
        if any(size > self._largest.get(symbol, size) for symbol, size in sizes.items()):
            options.add_run_config_entry(*FREE_ARENA)
        self._largest = {s: max(size, self._largest.get(s, 0)) for s, size in sizes.items()}
        return options

    def close(self) -> None:
        """Release the session."""
        self._session = None


@contextmanager
def told(path: Any) -> Iterator[None]:
    """Tell in one line that a run of an .onnx file failed."""
    try:
        yield
    except Exception as error:
        # ONNX Runtime has no common class for what it raises.
        reason = " ".join(str(error).split())
        raise BackendError(
            f"onnxruntime failed to run {path} ({reason:.200}): there may be too little memory for "
            "inputs of this size"
        ) from error


def pick_providers(device: str, engines: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the execution providers to try for a device, the best first and the CPU last.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
        engines: folder in which TensorRT keeps what it builds.

    Raises:
        BackendError: it is none of these.
    """
    chosen: list[tuple[str, dict[str, Any]]] = []
    if device != "cpu":
        index, there = device_index(device), ort.get_available_providers()
        # onnxruntime-gpu lists TensorRT whether its libraries are there or not.
        if TENSORRT in there and find_library("nvinfer"):
            kept = {"trt_engine_cache_enable": True, "trt_engine_cache_path": str(engines)}
            chosen.append((TENSORRT, {"device_id": index, **kept}))
        if CUDA in there:
            chosen.append((CUDA, {"device_id": index, "arena_extend_strategy": "kSameAsRequested"}))
    return [*chosen, (CPU, {})]


def device_index(device: str) -> int:
    """Return the number of a GPU: 1 for "cuda:1", 0 for "auto" and "cuda"."""
    kind, _, index = device.partition(":")
    if device in ("auto", "cuda") or (kind == "cuda" and index.isdecimal()):
        return int(index or 0)
    raise BackendError(
        f"device {device!r} is not usable by the onnx backend; use cpu, cuda or cuda:N"
    )


def fall_back(reason: str) -> None:
    """Say that the CPU serves in place of a GPU."""
    warnings.warn(
        f"onnxruntime runs on the CPU, not on the GPU: {reason}; for a GPU install "
        'onnxruntime-gpu in place of onnxruntime, or say device="cpu"',
        RuntimeWarning,
        stacklevel=2,
    )


def session_options(threads: int, fixed: bool) -> ort.SessionOptions:
    """Return the options of every session.

    Args:
        threads: CPU threads within an operator; operators run one after the other.
        fixed: no shape varies, so the memory of a whole run can be laid out once.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.enable_mem_pattern = fixed
    options.log_severity_level = ERRORS_ONLY
    for name, value in SETTINGS.items():
        options.add_session_config_entry(name, value)
    return options


@cache
def set_arena() -> None:
    """Give the sessions of this process one arena that grows by what is asked for.

    It never takes more than the machine or the container has: a run that needs more fails.
    """
    place = ort.OrtMemoryInfo(
        "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
    )
    # The program around us may have set one already: then that serves.
    with suppress(RuntimeError):
        settings = {"arena_extend_strategy": SAME_AS_REQUESTED}
        memory = usable_memory()
        if memory is not None:
            # More would only have the system kill this process.
            settings["max_mem"] = memory
        ort.create_and_register_allocator(place, ort.OrtArenaCfg(settings))


def check_ports(stage: Stage, session: ort.InferenceSession) -> None:
    """Refuse a file whose inputs and outputs are not the stage's ports."""
    for ports, nodes in (
        (stage.inputs, session.get_inputs()),
        (stage.outputs, session.get_outputs()),
    ):
        wanted, found = {port.name for port in ports}, {node.name for node in nodes}
        if wanted != found:
            raise BackendError(
                f"{stage.module} has {', '.join(sorted(found))} where {stage.name} has "
                f"{', '.join(sorted(wanted))}: export the bundle again"
            )

"""ONNX Runtime on a plain export, in fp32 and dynamically quantized to int8."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.peers.plain_onnx import Graph, PlainOnnx

__all__ = ["OnnxRuntime", "OnnxRuntimeInt8"]


class OnnxRuntime(PlainOnnx):
    """Run the graphs with ONNX Runtime's CPU provider; its defaults but for the threads."""

    name = "onnxruntime"
    backend = "onnxruntime"

    @staticmethod
    def open_graph(path: Path, threads: int) -> Graph:
        """Return what runs a graph on that many CPU threads."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(
            path, sess_options=options, providers=["CPUExecutionProvider"]
        )
        names = [value.name for value in session.get_inputs()]

        def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
            outputs: list[np.ndarray] = session.run(None, dict(zip(names, inputs, strict=True)))
            return outputs

        return run


class OnnxRuntimeInt8(OnnxRuntime):
    """Run the graphs that onnxruntime's quantize_dynamic made of the same export."""

    name = "onnxruntime-int8"
    precision = "int8"

"""OpenVINO on a plain export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino
from openvino import properties
from openvino.properties import hint

from benchmarks.peers.plain_onnx import Graph, PlainOnnx

__all__ = ["OpenVino"]


class OpenVino(PlainOnnx):
    """Run the graphs with OpenVINO's CPU plugin, tuned for latency."""

    name = "openvino"
    backend = "openvino"

    @staticmethod
    def open_graph(path: Path, threads: int) -> Graph:
        """Return what runs a graph on that many CPU threads."""
        settings = {
            hint.performance_mode: hint.PerformanceMode.LATENCY,
            # Where the CPU has bf16, OpenVINO takes it unasked; the others compute in fp32.
            hint.inference_precision: openvino.Type.f32,
            properties.inference_num_threads: threads,
        }
        model = openvino.Core().compile_model(path, "CPU", settings)

        def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
            return list(model(list(inputs), share_inputs=True).values())

        return run

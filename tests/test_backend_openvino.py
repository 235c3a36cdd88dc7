"""What the openvino backend has of its own: threads, and the CPU alone."""

from __future__ import annotations

import pytest

from vkrt.errors import BackendError
from vkrt.options import Options

pytest.importorskip("openvino")

from openvino import properties

from vkrt.backends.openvino import DEVICE, OpenVinoBackend, settings


def test_threads_are_explicit() -> None:
    backend = OpenVinoBackend(Options(threads=3))
    assert settings(3)[properties.inference_num_threads] == 3
    assert backend._settings == settings(3) and DEVICE in backend._core.available_devices


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_it_runs_on_no_gpu(device: str) -> None:
    with pytest.raises(BackendError, match=r"use cpu$"):
        OpenVinoBackend(Options(device=device))

"""Attention that an export keeps whole, at lengths that a graph does not know."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vkrt.backends import cut as cut_backend
from vkrt.backends.onnx import OnnxBackend
from vkrt.export.check import check_stage, refuse_failures
from vkrt.export.to_onnx import stage_to_onnx
from vkrt.kernels.attention import attention
from vkrt.options import Options
from vkrt.stage import Port, Stage
from vkrt.steps import Attention, CutFile


class Reader(nn.Module):
    """Let tokens attend to others, their number and that of the others free."""

    def forward(self, x: Tensor, others: Tensor) -> tuple[Tensor]:
        query, key = (
            t.unflatten(-1, (2, -1)).transpose(1, 2) for t in (2 * x, torch.cat((others, x), dim=1))
        )
        return (attention(query, key, key + 1).transpose(1, 2).flatten(2) + x,)


def reader() -> Stage:
    inputs = (Port("x", ("n", "tokens", 12)), Port("others", ("n", "length", 12)))
    return Stage("reader", Reader(), inputs, (Port("y", ("n", "tokens", 12)),))


@pytest.mark.parametrize("tokens", [1, 63, 123])
def test_it_is_attention(tokens: int) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 3, tokens, 8), torch.randn(2, 3, 40, 8), torch.ones(1)
    value = torch.randn(2, 3, 40, 5)
    wanted = F.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(attention(query, key, value), wanted)


def test_learning_goes_through_it() -> None:
    parts = [torch.randn(1, 2, 4, 8, requires_grad=True) for _ in range(3)]
    attention(*parts).sum().backward()
    assert all(part.grad is not None for part in parts)


@pytest.mark.parametrize("fast", [True, False])
def test_an_export_cuts_it_out(tmp_path: Path, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut_backend.host_attention, "IS_NATIVE", fast)
    stage = reader()
    made = stage_to_onnx(stage, tmp_path / "reader.onnx", may_cut=True)
    assert isinstance(made, CutFile)
    assert sum(isinstance(step, Attention) for step in made.steps) == 1
    assert {node.domain for node in onnx.load(made.path).graph.node} == {""}
    for form in (made, made.path):
        refuse_failures(check_stage(stage, form))
    backend = OnnxBackend(Options(device="cpu"))
    program = backend.prepare(Stage(stage.name, made, stage.inputs, stage.outputs))
    rng = np.random.default_rng(0)
    for tokens, length in ((40, 7), (3, 33)):
        x, others = (rng.standard_normal((2, n, 12)).astype(np.float32) for n in (tokens, length))
        (wanted,) = Reader()(torch.from_numpy(x), torch.from_numpy(others))
        np.testing.assert_allclose(program(x, others)[0], wanted.numpy(), atol=3e-6)
